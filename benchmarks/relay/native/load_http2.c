/* The load generator's gRPC side. Requests go round a fixed number of connections. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <nghttp2/nghttp2.h>

enum { CONNECTION_WINDOW = 1 << 28 };

static struct peer *peers[1024];
static int turn;

static nghttp2_nv field(const char *name, size_t name_len, const char *value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, name_len, strlen(value), NGHTTP2_NV_FLAG_NONE};
}

void http2_flush(struct peer *peer) {
    static struct bytes out;
    const uint8_t *frame;
    ssize_t len;
    if (peer->inside) return; /* nghttp2 must not be asked to write from its own calls; whoever is in it writes after */
    peer->inside = true;
    out.len = 0;
    while (peer->session != NULL && (len = nghttp2_session_mem_send(peer->session, &frame)) > 0)
        bytes_add(&out, frame, (size_t)len);
    peer->inside = false;
    channel_send(&peer->channel, out.at, out.len);
}

static ssize_t on_wanted(nghttp2_session *session, int32_t id, uint8_t *into, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *unused) {
    const struct bytes *body = &load.settings.body;
    size_t begin = (size_t)source->fd, len = body->len - begin < room ? body->len - begin : room;
    (void)session, (void)id, (void)unused;
    memcpy(into, body->at + begin, len);
    source->fd = (int)(begin + len);
    if (begin + len == body->len) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)len;
}

/* Counts whole messages, wherever frames cut them. */
static void read_messages(struct request *request, const uint8_t *from, size_t len) {
    int64_t now = now_us();
    while (len > 0) {
        if (request->prefix_len < 5) {
            request->prefix[request->prefix_len++] = *from++;
            len--;
            if (request->prefix_len < 5) continue;
            const uint8_t *size = request->prefix + 1;
            request->left = (size_t)size[0] << 24 | (size_t)size[1] << 16 | (size_t)size[2] << 8 | size[3];
        } else {
            size_t part = len < request->left ? len : request->left;
            request->left -= part;
            from += part;
            len -= part;
        }
        if (request->left == 0) {
            request->prefix_len = 0;
            count_message(request, now);
        }
    }
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *from, size_t len, void *unused) {
    struct request *request = nghttp2_session_get_stream_user_data(session, id);
    (void)flags, (void)unused;
    nghttp2_session_consume_connection(session, len);
    if (request == NULL) return 0;
    if (request->slow) request->unread += len;
    else nghttp2_session_consume_stream(session, id, len);
    read_messages(request, from, len);
    return 0;
}

static int on_field(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
                    const uint8_t *value, size_t len, uint8_t flags, void *unused) {
    struct request *request = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags, (void)unused;
    if (request == NULL) return 0;
    if (name_len == 7 && memcmp(name, ":status", 7) == 0) request->ok_status = len == 3 && memcmp(value, "200", 3) == 0;
    if (name_len == 11 && memcmp(name, "grpc-status", 11) == 0) request->ok_grpc = len == 1 && *value == '0';
    if (name_len == 12 && memcmp(name, "grpc-message", 12) == 0) note_error("%.*s", (int)len, (const char *)value);
    return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t error, void *user) {
    struct request *request = nghttp2_session_get_stream_user_data(session, id);
    struct peer *peer = user;
    if (request == NULL) return 0;
    bool ok = request->ok_status && request->ok_grpc && error == NGHTTP2_NO_ERROR;
    if (!ok)
        note_error("stream error %u, HTTP %s, gRPC %s", error, request->ok_status ? "ok" : "not ok",
                   request->ok_grpc ? "ok" : "not ok");
    nghttp2_session_set_stream_user_data(session, id, NULL);
    peer->live--;
    finish(request, ok, false);
    return 0;
}

static struct peer *connected(void) {
    static nghttp2_session_callbacks *callbacks;
    static nghttp2_option *options;
    struct peer *peer = zeroed(sizeof *peer);
    if (callbacks == NULL) {
        nghttp2_session_callbacks_new(&callbacks);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_field);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
        nghttp2_option_new(&options);
        nghttp2_option_set_no_auto_window_update(options, 1);
    }
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, (uint32_t)load.settings.window}};
    nghttp2_session_client_new2(&peer->session, callbacks, peer, options);
    nghttp2_submit_settings(peer->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(peer->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW);
    channel_open(&peer->channel, load.epoll, connect_to(load.settings.port, load.settings.receive_buffer), peer);
    http2_flush(peer);
    return peer;
}

void http2_start(struct request *request) {
    static char authority[32];
    const struct settings *settings = &load.settings;
    nghttp2_nv fields[40];
    size_t count = 0;
    int place = turn++ % settings->connections;
    if (authority[0] == 0) snprintf(authority, sizeof authority, "127.0.0.1:%d", settings->port);
    if (peers[place] == NULL) peers[place] = connected();
    request->peer = peers[place];
    request->peer->live++;
    fields[count++] = field(":method", 7, "POST");
    fields[count++] = field(":scheme", 7, "http");
    fields[count++] = field(":path", 5, settings->path);
    fields[count++] = field(":authority", 10, authority);
    fields[count++] = field("content-type", 12, "application/grpc");
    fields[count++] = field("te", 2, "trailers");
    fields[count++] = field("user-agent", 10, "fairlead-bench");
    for (int each = 0; each < settings->field_count; each++) {
        const char *colon = strstr(settings->fields[each], ": ");
        fields[count++] = field(settings->fields[each], (size_t)(colon - settings->fields[each]), colon + 2);
    }
    nghttp2_data_provider body = {.source.fd = 0, .read_callback = on_wanted};
    request->id = nghttp2_submit_request(request->peer->session, NULL, fields, count, &body, request);
    if (request->id < 0) die("no request can be sent: %s", nghttp2_strerror(request->id));
    if (request->slow) timer_start(&load.timers, &request->timer, now_us());
    http2_flush(request->peer);
}

void http2_read(struct peer *peer) {
    static uint8_t part[262144];
    while (!peer->dead) {
        ssize_t len = recv(peer->channel.fd, part, sizeof part, 0);
        if (len == 0 || (len < 0 && errno != EAGAIN)) {
            http2_lost(peer);
            return;
        }
        if (len < 0) break;
        peer->inside = true;
        ssize_t taken = nghttp2_session_mem_recv(peer->session, part, (size_t)len);
        peer->inside = false;
        if (taken < 0) {
            note_error("not HTTP/2: %s", nghttp2_strerror((int)taken));
            http2_lost(peer);
            return;
        }
        if (len < (ssize_t)sizeof part) break;
    }
    for (int each = 0; each < load.settings.connections; each++) /* a new request may be on another connection */
        if (peers[each] != NULL && nghttp2_session_want_write(peers[each]->session)) http2_flush(peers[each]);
}

/* Ends a connection with all that runs on it. */
static void end_peer(struct peer *peer, bool reset, bool injected) {
    struct nghttp2_session *session = peer->session;
    int32_t next_id = (int32_t)nghttp2_session_get_next_stream_id(session);
    for (int each = 0; each < load.settings.connections; each++)
        if (peers[each] == peer) peers[each] = NULL;
    drop_peer(peer, reset);
    for (int32_t id = 1; peer->live > 0 && id < next_id && id > 0; id += 2) {
        struct request *request = nghttp2_session_get_stream_user_data(session, id);
        if (request == NULL) continue;
        nghttp2_session_set_stream_user_data(session, id, NULL);
        peer->live--;
        finish(request, false, injected);
    }
    peer->session = NULL;
    nghttp2_session_del(session);
}

void http2_lost(struct peer *peer) {
    if (peer->live > 0) note_error("connection lost with %d requests on it", peer->live);
    end_peer(peer, false, false);
}

void http2_end(struct request *request, bool reset) {
    struct peer *peer = request->peer;
    if (reset) {
        end_peer(peer, true, true);
        return;
    }
    nghttp2_session_set_stream_user_data(peer->session, request->id, NULL);
    nghttp2_submit_rst_stream(peer->session, NGHTTP2_FLAG_NONE, request->id, NGHTTP2_CANCEL);
    peer->live--;
    http2_flush(peer);
    finish(request, false, true);
}

void http2_give_back(struct request *request) {
    if (request->unread == 0) return;
    nghttp2_session_consume_stream(request->peer->session, request->id, request->unread);
    request->unread = 0;
    http2_flush(request->peer);
}
