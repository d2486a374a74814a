/* The mock's HTTP/1.1 side: OpenAI's chat completions, models, and what routers probe. */
#define _GNU_SOURCE
#include "mock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool has(const uint8_t *from, size_t len, const char *text) {
    return memmem(from, len, text, strlen(text)) != NULL;
}

static void respond(struct connection *connection, const char *status, const void *body, size_t len) {
    char head[256];
    int head_len = snprintf(
        head, sizeof head, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status, len);
    struct bytes all = {0};
    bytes_add(&all, head, (size_t)head_len);
    bytes_add(&all, body, len);
    channel_send(&connection->channel, all.at, all.len);
    bytes_free(&all);
}

/* One event as one chunk, in one write. */
static void event(struct bytes *into, const struct bytes *body) {
    char head[16];
    int len = snprintf(head, sizeof head, "%zx\r\n", body->len);
    bytes_add(into, head, (size_t)len);
    bytes_add(into, body->at, body->len);
    bytes_add(into, "\r\n", 2);
}

void http1_forget(struct connection *connection) {
    struct stream *stream = connection->only;
    if (stream == NULL) return;
    if (stream->sent < stream->tokens) mock.cancelled++;
    timer_stop(&mock.timers, &stream->timer);
    stream->connection->listener->running--;
    free(stream);
    connection->only = NULL;
}

/* The end's events say how many tokens there were. */
static void last_event(struct bytes *into, int tokens) {
    static const char mark[] = "%TOKENS%";
    char count[16];
    size_t begin = into->len;
    event(into, &mock.templates.sse_last);
    uint8_t *at = memmem(into->at + begin, into->len - begin, mark, sizeof mark - 1);
    if (at == NULL) return;
    snprintf(count, sizeof count, "%-8d", tokens); /* as wide as the mark */
    memcpy(at, count, sizeof mark - 1);
}

static void write_token(struct stream *stream) {
    static struct bytes out;
    const struct templates *templates = &mock.templates;
    bool last = stream->sent + 1 == stream->tokens;
    out.len = 0;
    event(&out, stream->sent == 0 ? &templates->sse_first : &templates->sse_token);
    if (last) {
        last_event(&out, stream->tokens);
        bytes_add(&out, "0\r\n\r\n", 5);
    }
    stream->owed--;
    stream->sent++;
    mock.tokens++;
    mock.tokens_ever++;
    channel_send(&stream->connection->channel, out.at, out.len);
}

void http1_token(struct stream *stream) {
    struct connection *connection = stream->connection;
    while (stream->owed > 0 && !connection->channel.broken)
        write_token(stream);
    if (stream->sent < stream->tokens) return;
    http1_forget(connection);
    http1_read(connection); /* a request may have waited */
}

static void begin(struct connection *connection, const uint8_t *body, size_t len) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
    struct stream *stream = zeroed(sizeof *stream);
    stream->connection = connection;
    stream->dialect = OPENAI_STREAM;
    stream->tokens = 32;
    read_wish(body, len, &stream->tokens, &stream->interval_us);
    connection->only = stream;
    stream->connection->listener->running++;
    channel_send(&connection->channel, head, sizeof head - 1);
    if (stream->interval_us > 0) timer_start(&mock.timers, &stream->timer, now_us() + stream->interval_us);
    else stream->owed = stream->tokens;
}

static void tell_stats(struct connection *connection) {
    char body[256];
    int len = snprintf(body, sizeof body,
                       "{\"requests\": %lu, \"tokens\": %lu, \"cancelled\": %lu, \"late_ms_mean\": %.3f, "
                       "\"late_ms_max\": %.3f}",
                       mock.requests, mock.tokens, mock.cancelled,
                       mock.tokens > 0 ? 1e-3 * (double)mock.late_us_sum / (double)mock.tokens : 0.0,
                       1e-3 * (double)mock.late_us_max);
    respond(connection, "200 OK", body, (size_t)len);
    connection->channel.broken = true; /* the bench asks with HTTP/1.0 and reads to the end */
    mock.requests = mock.tokens = mock.cancelled = 0;
    mock.late_us_sum = mock.late_us_max = 0;
}

/* What routers of other houses ask a worker about. */
static void tell_about(struct connection *connection) {
    char body[512];
    const char *model = connection->listener->replica_id;
    int len =
        snprintf(body, sizeof body,
                 "{\"status\": \"ok\", \"model_path\": \"%s\", \"tokenizer_path\": \"%s\", \"is_generation\": true, "
                 "\"served_model_name\": \"%s\", \"tp_size\": 1, \"dp_size\": 1, \"max_num_reqs\": 1024, "
                 "\"version\": \"0.0\"}",
                 model, model, model);
    respond(connection, "200 OK", body, (size_t)len);
}

static void serve(struct connection *connection, const char *head, const uint8_t *body, size_t len) {
    char path[128] = "";
    sscanf(head, "%*s %127s", path);
    if (strncmp(head, "POST", 4) != 0) {
        if (strcmp(path, "/stats") == 0) tell_stats(connection);
        else if (strstr(path, "/models") != NULL)
            respond(connection, "200 OK", mock.templates.models.at, mock.templates.models.len);
        else tell_about(connection);
        return;
    }
    if (strstr(path, "completions") == NULL) {
        respond(connection, "404 Not Found", "{}", 2);
        return;
    }
    mock.requests++;
    if (has(body, len, "\"stream\":true") || has(body, len, "\"stream\": true")) {
        begin(connection, body, len);
    } else {
        mock.tokens++;
        respond(connection, "200 OK", mock.templates.json.at, mock.templates.json.len);
    }
}

/* Length of the body that follows a head, its chunk marks included; -1: not all of it is here yet. */
static ssize_t body_length(const char *head, const uint8_t *body, size_t here) {
    const char *length = strcasestr(head, "\r\ncontent-length:");
    if (length != NULL) {
        size_t wanted = strtoul(length + 17, NULL, 10);
        return here < wanted ? -1 : (ssize_t)wanted;
    }
    if (strcasestr(head, "\r\ntransfer-encoding: chunked") == NULL) return 0;
    const uint8_t *end = memmem(body, here, "0\r\n\r\n", 5);
    return end == NULL ? -1 : end + 5 - body;
}

void http1_read(struct connection *connection) {
    while (!connection->dead && !connection->channel.broken && connection->only == NULL && connection->in.len > 0) {
        struct bytes *in = &connection->in;
        uint8_t *end = memmem(in->at, in->len, "\r\n\r\n", 4);
        if (end == NULL) return;
        size_t head_len = (size_t)(end - in->at) + 4;
        end[2] = 0; /* the head is a string from here on, with the end of its last line */
        ssize_t len = body_length((char *)in->at, in->at + head_len, in->len - head_len);
        if (len < 0) {
            end[2] = '\r';
            return;
        }
        serve(connection, (char *)in->at, in->at + head_len, (size_t)len);
        bytes_drop(in, head_len + (size_t)len);
        struct stream *stream = connection->only;
        if (stream != NULL && stream->owed > 0) {
            while (stream->owed > 0 && !connection->channel.broken)
                write_token(stream);
            http1_forget(connection);
        }
    }
}
