/* What the mock engine and the load generator share: buffers, sockets that never block, timers, chance. */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ends the program with a message. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Monotonic time, microseconds. */
int64_t now_us(void);

/* Memory that cannot be had ends the program. */
void *zeroed(size_t size);

/* A growing byte string. All zero is empty. */
struct bytes {
    uint8_t *at;
    size_t len, cap;
};
void bytes_add(struct bytes *bytes, const void *from, size_t len);
void bytes_drop(struct bytes *bytes, size_t len); /* from the front */
void bytes_free(struct bytes *bytes);

/* Reads a whole file; ends the program where there is none. */
struct bytes bytes_of_file(const char *path);

/* A connected socket in an epoll set. What the kernel does not take at once waits in `pending`. */
struct channel {
    int fd, epoll;
    void *owner; /* what epoll gives back */
    struct bytes pending;
    uint32_t events; /* what epoll watches now */
    bool reading;    /* false: a reader that takes its time */
    bool broken;     /* no use any more; its owner ends it */
};
void channel_open(struct channel *channel, int epoll, int fd, void *owner);
void channel_send(struct channel *channel, const void *from, size_t len);
void channel_flush(struct channel *channel); /* it has become writable */
void channel_watch(struct channel *channel); /* after a change of `reading` */
void channel_close(struct channel *channel, bool reset);

/* Sockets of 127.0.0.1, without delay and without blocking. */
int listen_on(int port);
int accept_from(int listener); /* -1: nobody is there */
int connect_to(int port, int receive_buffer);

/* A timer inside something else, ordered in a heap; `place` 0 means it does not run. */
struct timer {
    int64_t due_us;
    size_t place;
};
struct timers {
    struct timer **heap; /* heap[1] is due first */
    size_t len, cap;
};
void timer_start(struct timers *timers, struct timer *timer, int64_t due_us);
void timer_stop(struct timers *timers, struct timer *timer);
struct timer *timer_due(struct timers *timers, int64_t now); /* taken out; NULL: none is due */
int64_t timer_next_us(const struct timers *timers);          /* INT64_MAX: none runs */

#define CONTAINER(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

/* Waits for events, no longer than until `due_us`; `wait_us_max` bounds it. */
struct epoll_event;
int wait_until(int epoll, struct epoll_event *events, int count, int64_t due_us, int64_t wait_us_max);

/* Chance, repeatable by its seed. */
struct chance {
    uint64_t state;
};
double chance_uniform(struct chance *chance); /* [0, 1) */

#endif
