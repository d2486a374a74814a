/* The mock engine: one process that answers as fast as a socket takes it, in every dialect the bench needs. */
#ifndef MOCK_H
#define MOCK_H

#include "wire.h"

/* How an answer is written. */
enum dialect {
    UNKNOWN,
    ENGINE_GENERATE, /* fairlead.engine.v1.EngineService/Generate */
    ENGINE_LOAD,     /* .../WatchLoad */
    ENGINE_TICKETS,  /* fairlead.engine.v1.TicketReportService/FollowTickets */
    ASSIGNMENTS,     /* fairlead.sharding.v1.AssignmentService/ExchangeAssignments: there are none */
    PUBLIC_STREAM,   /* fairlead.inference.v1.InferenceService/StreamGenerate: for rivals that pass it on as it is */
    PUBLIC_UNARY,    /* .../Generate */
    TRITON_STREAM,   /* inference.GRPCInferenceService/ModelStreamInfer */
    OPENAI_STREAM,   /* POST .../completions with "stream": true */
};

/* An answer under way. */
struct stream {
    struct timer timer; /* when its next token is due */
    struct connection *connection;
    enum dialect dialect;
    int tokens, sent, owed; /* of the answer; written so far; due and not written */
    int64_t interval_us;    /* between tokens; 0: back to back */
    /* HTTP/2 only: */
    struct stream *before, *after; /* on the same connection */
    int32_t id;
    bool answering;
    struct bytes request, message; /* `message` is what is left to write of one */
    uint32_t router;               /* which of those that count dispatches */
};

/* A port, and the replica that answers there. */
struct listener {
    int fd;
    char replica_id[96];
    uint64_t sequence; /* of its load reports */
    int running;       /* requests on it */
};

/* One client. */
struct connection {
    struct channel channel; /* first: epoll gives back the connection */
    struct listener *listener;
    struct connection *next_dead;
    bool dead;
    struct nghttp2_session *session; /* NULL: HTTP/1.1 */
    struct bytes in;                 /* HTTP/1.1: requests not read yet */
    struct stream *only;             /* HTTP/1.1: the answer under way */
    struct stream *streams;          /* HTTP/2: all of them */
};

/* Bodies, made by the bench; one file each in the folder of templates. */
struct templates {
    struct bytes piece;                          /* text and output_tokens of one token, without prefix */
    struct bytes unary;                          /* GenerateResponse, without prefix */
    struct bytes triton_token, triton_last;      /* ModelStreamInferResponse, without prefix */
    struct bytes sse_first, sse_token, sse_last; /* events */
    struct bytes json, models;                   /* whole bodies */
};

struct mock {
    int epoll;
    struct templates templates;
    struct timers timers;
    struct connection *dead; /* freed when epoll's batch is done */
    uint64_t tokens_ever;
    /* Since the last GET /stats: */
    uint64_t requests, tokens, cancelled;
    int64_t late_us_sum, late_us_max; /* tokens after their time */
};
extern struct mock mock;

void end_connection(struct connection *connection);

/* What a prompt asks for: "#N=256,I=10000#" is 256 tokens, 10,000 us apart. */
void read_wish(const uint8_t *from, size_t len, int *tokens, int64_t *interval_us);

/* mock_http1.c */
void http1_read(struct connection *connection);
void http1_token(struct stream *stream);
void http1_forget(struct connection *connection);

/* mock_http2.c */
void http2_begin(struct connection *connection);
void http2_read(struct connection *connection, const uint8_t *from, size_t len);
void http2_token(struct stream *stream);
void http2_flush(struct connection *connection);
void http2_forget(struct connection *connection);

/* mock_messages.c: gRPC messages, with their prefixes. */
void next_message(struct stream *stream, struct bytes *into);
bool reports(const struct stream *stream); /* to routers, for as long as they listen; no answer to a request */
void dispatched(struct stream *stream);    /* reads an EngineGenerateRequest or a WatchLoadRequest */

#endif
