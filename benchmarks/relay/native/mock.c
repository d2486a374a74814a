/* A mock engine: OpenAI's SSE on HTTP/1.1; the replica agent's gRPC, the public gRPC and Triton's on h2c;
   as many replicas as it is given ports, all alike; one thread.

   mock_engine -t TEMPLATES -l PORT:REPLICA_ID [-l PORT:REPLICA_ID]...

   A prompt that begins "#N=256,I=10000#" asks for 256 tokens 10,000 us apart, each its own write. GET /stats tells what
   was done since it was last asked: {"requests", "tokens", "cancelled", "late_ms_mean", "late_ms_max"}. */
#define _GNU_SOURCE
#include "mock.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTENERS_MAX = 64 };

struct mock mock;

static struct listener listeners[LISTENERS_MAX];
static int listener_count;

void read_wish(const uint8_t *from, size_t len, int *tokens, int64_t *interval_us) {
    char text[64];
    const uint8_t *mark = memmem(from, len, "#N=", 3);
    if (mark == NULL) return;
    size_t left = len - (size_t)(mark - from);
    if (left > sizeof text - 1) left = sizeof text - 1;
    memcpy(text, mark, left);
    text[left] = 0;
    long wanted, interval;
    if (sscanf(text, "#N=%ld,I=%ld#", &wanted, &interval) == 2 && wanted > 0) {
        *tokens = (int)wanted;
        *interval_us = interval;
    }
}

void end_connection(struct connection *connection) {
    if (connection->dead) return;
    connection->dead = true;
    if (connection->session != NULL) http2_forget(connection);
    else http1_forget(connection);
    channel_close(&connection->channel, false);
    bytes_free(&connection->in);
    connection->next_dead = mock.dead;
    mock.dead = connection;
}

static void bury(void) {
    while (mock.dead != NULL) {
        struct connection *next = mock.dead->next_dead;
        free(mock.dead);
        mock.dead = next;
    }
}

static void welcome(struct listener *listener) {
    int fd;
    while ((fd = accept_from(listener->fd)) >= 0) {
        struct connection *connection = zeroed(sizeof *connection);
        connection->listener = listener;
        channel_open(&connection->channel, mock.epoll, fd, connection);
    }
}

static void readable(struct connection *connection) {
    static uint8_t part[65536];
    while (!connection->dead) {
        ssize_t len = recv(connection->channel.fd, part, sizeof part, 0);
        if (len == 0 || (len < 0 && errno != EAGAIN)) {
            end_connection(connection);
            return;
        }
        if (len < 0) return;
        if (connection->session == NULL && connection->in.len == 0 && len >= 3 && memcmp(part, "PRI", 3) == 0)
            http2_begin(connection);
        if (connection->session != NULL) {
            http2_read(connection, part, (size_t)len);
        } else {
            bytes_add(&connection->in, part, (size_t)len);
            http1_read(connection);
        }
        if (len < (ssize_t)sizeof part) return;
    }
}

static void served(struct connection *connection, uint32_t events) {
    if (connection->dead) return;
    if (events & EPOLLOUT) {
        channel_flush(&connection->channel);
        if (connection->session != NULL && connection->channel.pending.len == 0) http2_flush(connection);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(connection);
    if (!connection->dead && connection->channel.broken) end_connection(connection);
}

/* Writes every token whose time has come. */
static void tokens_due(void) {
    struct timer *timer;
    int64_t now = now_us();
    while ((timer = timer_due(&mock.timers, now)) != NULL) {
        struct stream *stream = CONTAINER(timer, struct stream, timer);
        struct connection *connection = stream->connection;
        int64_t due_us = timer->due_us, late_us = now_us() - due_us;
        stream->owed++;
        if (!reports(stream)) {
            mock.late_us_sum += late_us;
            if (late_us > mock.late_us_max) mock.late_us_max = late_us;
        }
        if (stream->sent + stream->owed < stream->tokens)
            timer_start(&mock.timers, timer, due_us + stream->interval_us);
        if (connection->session != NULL) http2_token(stream);
        else http1_token(stream);
        if (connection->channel.broken) end_connection(connection);
    }
}

static struct bytes template(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return bytes_of_file(path);
}

static void read_templates(const char *folder) {
    mock.templates = (struct templates){
        .piece = template(folder, "piece"),
        .unary = template(folder, "unary"),
        .triton_token = template(folder, "triton_token"),
        .triton_last = template(folder, "triton_last"),
        .sse_first = template(folder, "sse_first"),
        .sse_token = template(folder, "sse_token"),
        .sse_last = template(folder, "sse_last"),
        .json = template(folder, "json"),
        .models = template(folder, "models"),
    };
}

static void add_listener(const char *wanted) {
    int port;
    if (listener_count == LISTENERS_MAX) die("at most %d ports", LISTENERS_MAX);
    struct listener *listener = &listeners[listener_count++];
    if (sscanf(wanted, "%d:%95s", &port, listener->replica_id) != 2) die("-l PORT:REPLICA_ID, not %s", wanted);
    listener->fd = listen_on(port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = listener};
    if (epoll_ctl(mock.epoll, EPOLL_CTL_ADD, listener->fd, &event) != 0) die("epoll: %s", strerror(errno));
}

static bool is_listener(const void *what) {
    return (const struct listener *)what >= listeners && (const struct listener *)what < listeners + LISTENERS_MAX;
}

int main(int count, char **arguments) {
    struct epoll_event events[256];
    const char *templates = NULL;
    int option;
    mock.epoll = epoll_create1(EPOLL_CLOEXEC);
    while ((option = getopt(count, arguments, "l:t:")) != -1) {
        if (option == 'l') add_listener(optarg);
        else if (option == 't') templates = optarg;
        else die("see the head of mock.c for how it is used");
    }
    if (listener_count == 0 || templates == NULL) die("mock_engine needs -l and -t");
    signal(SIGPIPE, SIG_IGN);
    read_templates(templates);
    for (;;) {
        tokens_due();
        int found = wait_until(mock.epoll, events, 256, timer_next_us(&mock.timers), 1000000);
        for (int each = 0; each < found; each++) {
            void *what = events[each].data.ptr;
            if (is_listener(what)) welcome(what);
            else served(what, events[each].events);
        }
        bury();
    }
}
