/* The mock's HTTP/2 side: gRPC in four dialects. */
#define _GNU_SOURCE
#include "mock.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <nghttp2/nghttp2.h>

enum { STREAMS_MAX = 100000, STREAM_WINDOW = 1 << 20, CONNECTION_WINDOW = 1 << 28, PENDING_MAX = 1 << 20 };

static const struct {
    const char *path_end;
    enum dialect dialect;
} methods[] = {
    {"EngineService/Generate", ENGINE_GENERATE},
    {"EngineService/WatchLoad", ENGINE_LOAD},
    {"TicketReportService/FollowTickets", ENGINE_TICKETS},
    {"AssignmentService/ExchangeAssignments", ASSIGNMENTS},
    {"InferenceService/StreamGenerate", PUBLIC_STREAM},
    {"InferenceService/Generate", PUBLIC_UNARY},
    {"GRPCInferenceService/ModelStreamInfer", TRITON_STREAM},
};

static nghttp2_nv field(const char *name, const char *value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

/* Writes what nghttp2 has ready: every frame its own write, as an engine does that has one token at a time. */
void http2_flush(struct connection *connection) {
    const uint8_t *frame;
    ssize_t len;
    while (connection->session != NULL && connection->channel.pending.len < PENDING_MAX) {
        len = nghttp2_session_mem_send(connection->session, &frame);
        if (len <= 0 || connection->channel.broken) return;
        channel_send(&connection->channel, frame, (size_t)len);
    }
}

/* One DATA frame: one message, or what of it the window takes. */
static ssize_t on_wanted(nghttp2_session *session, int32_t id, uint8_t *into, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *unused) {
    struct stream *stream = source->ptr;
    (void)unused;
    if (stream->message.len == 0) {
        if (stream->owed == 0) return NGHTTP2_ERR_DEFERRED;
        next_message(stream, &stream->message);
        stream->owed--;
        stream->sent++;
        if (!reports(stream)) {
            mock.tokens++;
            mock.tokens_ever++;
        }
    }
    size_t len = stream->message.len < room ? stream->message.len : room;
    memcpy(into, stream->message.at, len);
    bytes_drop(&stream->message, len);
    if (stream->message.len == 0 && stream->sent == stream->tokens) {
        nghttp2_nv trailer = field("grpc-status", "0");
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_submit_trailer(session, id, &trailer, 1);
    }
    return (ssize_t)len;
}

/* Has nghttp2 ask for what is owed. */
static void offer(struct stream *stream) {
    struct connection *connection = stream->connection;
    if (!stream->answering) {
        nghttp2_nv fields[] = {field(":status", "200"), field("content-type", "application/grpc")};
        nghttp2_data_provider body = {.source.ptr = stream, .read_callback = on_wanted};
        stream->answering = true;
        nghttp2_submit_response(connection->session, stream->id, fields, 2, &body);
    } else {
        nghttp2_session_resume_data(connection->session, stream->id);
    }
}

void http2_token(struct stream *stream) {
    offer(stream);
    http2_flush(stream->connection);
}

/* The request is here. Called by nghttp2, which must not be asked to write meanwhile: http2_read does so afterwards. */
static void answer(struct stream *stream) {
    if (stream->dialect == UNKNOWN) {
        nghttp2_nv fields[] = {field(":status", "200"), field("content-type", "application/grpc"),
                               field("grpc-status", "12")};
        nghttp2_submit_response(stream->connection->session, stream->id, fields, 3, NULL);
        return;
    }
    stream->tokens = 32;
    read_wish(stream->request.at, stream->request.len, &stream->tokens, &stream->interval_us);
    dispatched(stream);
    if (reports(stream)) {
        stream->tokens = INT_MAX;
        stream->interval_us = stream->dialect == ENGINE_LOAD ? 1000000 : 250000; /* what routers ask for; often */
        stream->owed = 1;                                                        /* one at once */
        timer_start(&mock.timers, &stream->timer, now_us() + stream->interval_us);
        offer(stream);
        return;
    }
    mock.requests++;
    stream->connection->listener->running++;
    if (stream->dialect == PUBLIC_UNARY || stream->dialect == ASSIGNMENTS) stream->tokens = 1;
    if (stream->interval_us > 0) { /* nothing, not even headers, before the first token */
        timer_start(&mock.timers, &stream->timer, now_us() + stream->interval_us);
        return;
    }
    stream->owed = stream->tokens;
    offer(stream);
}

static int on_begin(nghttp2_session *session, const nghttp2_frame *frame, void *connection) {
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        struct stream *stream = zeroed(sizeof *stream);
        stream->id = frame->hd.stream_id;
        stream->connection = connection;
        stream->after = stream->connection->streams;
        if (stream->after != NULL) stream->after->before = stream;
        stream->connection->streams = stream;
        nghttp2_session_set_stream_user_data(session, stream->id, stream);
    }
    return 0;
}

static int on_field(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
                    const uint8_t *value, size_t len, uint8_t flags, void *unused) {
    struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags, (void)unused;
    if (stream == NULL || name_len != 5 || memcmp(name, ":path", 5) != 0) return 0;
    for (size_t each = 0; each < sizeof methods / sizeof *methods; each++) {
        size_t end = strlen(methods[each].path_end);
        if (len > end && memcmp(value + len - end, methods[each].path_end, end) == 0)
            stream->dialect = methods[each].dialect;
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *from, size_t len, void *unused) {
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    (void)flags, (void)unused;
    if (stream != NULL && stream->tokens == 0) bytes_add(&stream->request, from, len);
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *unused) {
    struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)unused;
    if (stream == NULL || (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS)) return 0;
    bool ended = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    /* Who may say more keeps his side open: the first message is the request. */
    bool goes_on = stream->dialect == TRITON_STREAM || stream->dialect == ENGINE_TICKETS;
    if (stream->tokens == 0 && (ended || (goes_on && stream->request.len > 0))) answer(stream);
    return 0;
}

static void forget(struct stream *stream) {
    *(stream->before != NULL ? &stream->before->after : &stream->connection->streams) = stream->after;
    if (stream->after != NULL) stream->after->before = stream->before;
    timer_stop(&mock.timers, &stream->timer);
    if (stream->tokens > 0 && !reports(stream)) {
        stream->connection->listener->running--;
        if (stream->sent < stream->tokens) mock.cancelled++;
    }
    bytes_free(&stream->request);
    bytes_free(&stream->message);
    free(stream);
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t error, void *unused) {
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    (void)error, (void)unused;
    if (stream != NULL) forget(stream);
    return 0;
}

/* The connection is over. nghttp2 tells of no stream's end then. */
void http2_forget(struct connection *connection) {
    nghttp2_session_del(connection->session);
    connection->session = NULL;
    while (connection->streams != NULL)
        forget(connection->streams);
}

void http2_begin(struct connection *connection) {
    static nghttp2_session_callbacks *callbacks;
    if (callbacks == NULL) {
        nghttp2_session_callbacks_new(&callbacks);
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_field);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    }
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS_MAX},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW}};
    nghttp2_session_server_new(&connection->session, callbacks, connection);
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW);
}

void http2_read(struct connection *connection, const uint8_t *from, size_t len) {
    if (nghttp2_session_mem_recv(connection->session, from, len) < 0) {
        end_connection(connection);
        return;
    }
    http2_flush(connection);
    if (!nghttp2_session_want_read(connection->session) && !nghttp2_session_want_write(connection->session))
        end_connection(connection);
}
