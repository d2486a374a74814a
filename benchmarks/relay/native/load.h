/* The load generator: what its three parts share. */
#ifndef LOAD_H
#define LOAD_H

#include "wire.h"

/* How a request is to end. */
enum fate { TO_THE_END, CANCEL, RESET };

struct request {
    struct timer timer; /* for its fate, or for a slow reader's next read */
    struct peer *peer;
    int64_t begun_us, first_us; /* first_us 0: nothing came yet */
    long messages;
    enum fate fate;
    bool slow;
    /* HTTP/2 only: */
    int32_t id;
    bool ok_status, ok_grpc;
    uint8_t prefix[5]; /* of the message being read */
    size_t prefix_len, left;
    size_t unread; /* by a slow reader: bytes whose window is not given back yet */
};

/* A connection to what is measured. */
struct peer {
    struct channel channel; /* first: epoll gives back the peer */
    struct peer *next_dead;
    bool dead;
    struct nghttp2_session *session; /* NULL: HTTP/1.1 */
    bool inside;                     /* nghttp2 is at work on it */
    int live;                        /* requests on it */
    /* HTTP/1.1 only: */
    struct request *request;
    struct bytes head; /* of the answer, until it is whole */
    bool in_body, chunked, keep, ok_status;
    long left;   /* of the body, or of the chunk; -1: until the end of the connection */
    int chunk;   /* where in the chunk's marks */
    int matched; /* characters of "data: " seen */
};

struct settings {
    bool grpc, cut; /* cut: what is open at the end is cancelled and does not count */
    int port, connections, receive_buffer, window;
    const char *path;
    struct bytes body;
    const char *fields[32]; /* "name: value" */
    int field_count;
    int concurrency;
    double rate_per_s;
    int64_t measured_us, warm_up_us, ramp_us;
    long messages_wanted;       /* an answer with fewer is an error; 0: any */
    double cancel, reset, slow; /* shares of requests */
    double fate_s;              /* they are cancelled or reset within this time */
    int64_t pause_us;           /* of slow readers, between reads */
    int watched[256];           /* processes whose CPU time is read at both ends of the window */
    int watched_count;
};

/* What was seen inside the window, or ever. */
struct counts {
    long done, errors, injected, messages;
};

struct load {
    struct settings settings;
    int epoll;
    struct chance chance;
    struct timers timers;
    struct peer *dead;
    int64_t begin_us, window_us, end_us;
    int live, live_max;
    struct counts all, window;
    char error[256]; /* the first one */
};
extern struct load load;

/* load.c */
void count_message(struct request *request, int64_t now);
void finish(struct request *request, bool ok, bool injected); /* counts, frees, and starts the next one */
void note_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void drop_peer(struct peer *peer, bool reset);

/* load_http1.c and load_http2.c */
void http1_prepare(void);
void http1_start(struct request *request);
void http1_read(struct peer *peer);
void http1_read_slowly(struct request *request);
void http1_end(struct request *request, bool reset);
void http1_lost(struct peer *peer);
void http2_start(struct request *request);
void http2_read(struct peer *peer);
void http2_end(struct request *request, bool reset);
void http2_lost(struct peer *peer);
void http2_give_back(struct request *request);
void http2_flush(struct peer *peer);

#endif
