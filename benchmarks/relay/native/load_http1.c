/* The load generator's HTTP/1.1 side: a connection per request in flight, kept for the next one. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { SLOW_READ_BYTES = 1024, IDLE_MAX = 1 << 17 };

/* Where the reader of a chunked body is. */
enum { IN_SIZE, IN_SIZE_END, IN_DATA, IN_DATA_END, IN_TRAILER };

static struct bytes asked; /* the request, the same every time */
static struct peer *idle[IDLE_MAX];
static int idle_count;

void http1_prepare(void) {
    const struct settings *settings = &load.settings;
    char line[1024];
    bytes_add(&asked, line,
              (size_t)snprintf(line, sizeof line,
                               "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAccept: "
                               "*/*\r\nContent-Length: %zu\r\n",
                               settings->path, settings->port, settings->body.len));
    for (int each = 0; each < settings->field_count; each++)
        bytes_add(&asked, line, (size_t)snprintf(line, sizeof line, "%s\r\n", settings->fields[each]));
    bytes_add(&asked, "\r\n", 2);
    bytes_add(&asked, settings->body.at, settings->body.len);
}

void http1_start(struct request *request) {
    struct peer *peer;
    if (idle_count > 0) {
        peer = idle[--idle_count];
    } else {
        peer = zeroed(sizeof *peer);
        channel_open(&peer->channel, load.epoll, connect_to(load.settings.port, load.settings.receive_buffer), peer);
    }
    peer->request = request;
    peer->head.len = 0;
    peer->in_body = false;
    peer->matched = 0;
    peer->live = 1;
    request->peer = peer;
    peer->channel.reading = !request->slow;
    channel_watch(&peer->channel);
    if (request->slow) timer_start(&load.timers, &request->timer, now_us());
    channel_send(&peer->channel, asked.at, asked.len);
}

static void forget(struct peer *peer) {
    for (int each = 0; each < idle_count; each++)
        if (idle[each] == peer) idle[each--] = idle[--idle_count];
}

static void answered(struct peer *peer, bool ok) {
    struct request *request = peer->request;
    peer->request = NULL;
    peer->live = 0;
    if (peer->keep && ok && idle_count < IDLE_MAX) {
        peer->channel.reading = true;
        channel_watch(&peer->channel);
        idle[idle_count++] = peer;
    } else {
        drop_peer(peer, false);
    }
    finish(request, ok, false);
}

/* Counts events by their "data: ", of which no character but the first is a 'd'. */
static void count_events(struct peer *peer, const char *from, size_t len) {
    static const char mark[] = "data: ";
    int64_t now = now_us();
    for (size_t each = 0; each < len; each++) {
        peer->matched = from[each] == mark[peer->matched] ? peer->matched + 1 : from[each] == 'd';
        if (mark[peer->matched] == 0) {
            peer->matched = 0;
            count_message(peer->request, now);
        }
    }
}

/* Reads a chunked body; true at its end. */
static bool read_chunks(struct peer *peer, const char *from, size_t len) {
    for (size_t each = 0; each < len;) {
        char next = from[each];
        switch (peer->chunk) {
        case IN_SIZE:
            each++;
            if (next == '\n') {
                peer->chunk = peer->left > 0 ? IN_DATA : IN_TRAILER;
            } else if (next == ';') {
                peer->chunk = IN_SIZE_END;
            } else if (next != '\r') {
                peer->left = 16 * peer->left + (next <= '9' ? next - '0' : (next | 32) - 'a' + 10);
            }
            break;
        case IN_SIZE_END:
            each++;
            if (next == '\n') peer->chunk = peer->left > 0 ? IN_DATA : IN_TRAILER;
            break;
        case IN_DATA: {
            size_t part = len - each < (size_t)peer->left ? len - each : (size_t)peer->left;
            count_events(peer, from + each, part);
            each += part;
            peer->left -= (long)part;
            if (peer->left == 0) peer->chunk = IN_DATA_END;
            break;
        }
        case IN_DATA_END:
            each++;
            if (next == '\n') peer->chunk = IN_SIZE;
            break;
        default: /* no trailers are expected: the first line end is the last one */
            each++;
            if (next == '\n') return true;
        }
    }
    return false;
}

static bool read_body(struct peer *peer, const char *from, size_t len) {
    if (peer->chunked) return read_chunks(peer, from, len);
    count_events(peer, from, len);
    if (peer->left < 0) return false;
    peer->left -= (long)len;
    if (peer->left <= 0 && peer->request->messages == 0) count_message(peer->request, now_us()); /* one JSON body */
    return peer->left <= 0;
}

static bool read_head(struct peer *peer, const char *from, size_t len, size_t *taken) {
    size_t before = peer->head.len;
    bytes_add(&peer->head, from, len);
    uint8_t *end = memmem(peer->head.at, peer->head.len, "\r\n\r\n", 4);
    *taken = len;
    if (end == NULL) return false;
    *taken = (size_t)(end - peer->head.at) + 4 - before;
    *end = 0;
    const char *head = (const char *)peer->head.at, *length = strcasestr(head, "\r\ncontent-length:");
    peer->in_body = true;
    peer->ok_status = strncmp(head, "HTTP/1.1 200", 12) == 0;
    peer->keep = strcasestr(head, "\r\nconnection: close") == NULL;
    peer->chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
    peer->chunk = IN_SIZE;
    peer->left = peer->chunked ? 0 : length != NULL ? strtol(length + 17, NULL, 10) : -1;
    if (!peer->ok_status) note_error("%.60s ... %.*s", head, (int)(len - *taken), from + *taken);
    return true;
}

static void take(struct peer *peer, const char *from, size_t len) {
    size_t taken = 0;
    if (peer->request == NULL) return;
    if (!peer->in_body && !read_head(peer, from, len, &taken)) return;
    if ((taken < len || peer->left == 0) && read_body(peer, from + taken, len - taken)) answered(peer, peer->ok_status);
}

void http1_read(struct peer *peer) {
    static char part[262144];
    bool slow = peer->request != NULL && peer->request->slow;
    ssize_t len = recv(peer->channel.fd, part, slow ? SLOW_READ_BYTES : sizeof part, 0);
    if (len == 0 || (len < 0 && errno != EAGAIN)) http1_lost(peer);
    else if (len > 0) take(peer, part, (size_t)len);
}

void http1_read_slowly(struct request *request) {
    struct peer *peer = request->peer;
    peer->channel.reading = !request->slow;
    channel_watch(&peer->channel);
    http1_read(peer);
}

void http1_lost(struct peer *peer) {
    if (peer->dead) return;
    forget(peer);
    if (peer->request == NULL) {
        drop_peer(peer, false);
        return;
    }
    bool whole = peer->in_body && !peer->chunked && peer->left < 0 && peer->ok_status;
    if (!whole) note_error("connection lost after %ld events", peer->request->messages);
    peer->keep = false;
    answered(peer, whole);
}

void http1_end(struct request *request, bool reset) {
    struct peer *peer = request->peer;
    peer->request = NULL;
    drop_peer(peer, reset);
    finish(request, false, true);
}
