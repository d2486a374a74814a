#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(1);
}

int64_t now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * INT64_C(1000000) + at.tv_nsec / 1000;
}

void *zeroed(size_t size) {
    void *made = calloc(1, size);
    if (made == NULL) die("out of memory");
    return made;
}

void bytes_add(struct bytes *bytes, const void *from, size_t len) {
    if (len == 0) return;
    if (bytes->len + len > bytes->cap) {
        bytes->cap = (bytes->len + len) * 2;
        bytes->at = realloc(bytes->at, bytes->cap);
        if (bytes->at == NULL) die("out of memory");
    }
    memcpy(bytes->at + bytes->len, from, len);
    bytes->len += len;
}

void bytes_drop(struct bytes *bytes, size_t len) {
    if (len == 0) return;
    bytes->len -= len;
    memmove(bytes->at, bytes->at + len, bytes->len);
}

void bytes_free(struct bytes *bytes) {
    free(bytes->at);
    *bytes = (struct bytes){0};
}

struct bytes bytes_of_file(const char *path) {
    struct bytes all = {0};
    char part[65536];
    size_t len;
    FILE *file = fopen(path, "rb");
    if (file == NULL) die("%s: %s", path, strerror(errno));
    while ((len = fread(part, 1, sizeof part, file)) > 0)
        bytes_add(&all, part, len);
    fclose(file);
    return all;
}

void channel_open(struct channel *channel, int epoll, int fd, void *owner) {
    *channel = (struct channel){.fd = fd, .epoll = epoll, .owner = owner, .reading = true, .events = EPOLLIN};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = owner};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) die("epoll: %s", strerror(errno));
}

void channel_watch(struct channel *channel) {
    uint32_t wanted = (channel->reading ? EPOLLIN : 0) | (channel->pending.len > 0 ? EPOLLOUT : 0);
    if (wanted == channel->events || channel->fd < 0) return;
    channel->events = wanted;
    struct epoll_event event = {.events = wanted, .data.ptr = channel->owner};
    epoll_ctl(channel->epoll, EPOLL_CTL_MOD, channel->fd, &event);
}

/* What the kernel takes now. */
static size_t sent_now(struct channel *channel, const void *from, size_t len) {
    ssize_t sent = send(channel->fd, from, len, MSG_NOSIGNAL);
    if (sent >= 0) return (size_t)sent;
    if (errno != EAGAIN && errno != ENOTCONN && errno != EINPROGRESS) channel->broken = true;
    return 0;
}

void channel_send(struct channel *channel, const void *from, size_t len) {
    size_t sent = 0;
    if (channel->broken || channel->fd < 0) return;
    if (channel->pending.len == 0) sent = sent_now(channel, from, len);
    if (channel->broken || sent == len) return;
    bytes_add(&channel->pending, (const uint8_t *)from + sent, len - sent);
    channel_watch(channel);
}

void channel_flush(struct channel *channel) {
    if (channel->pending.len > 0)
        bytes_drop(&channel->pending, sent_now(channel, channel->pending.at, channel->pending.len));
    channel_watch(channel);
}

void channel_close(struct channel *channel, bool reset) {
    if (channel->fd < 0) return;
    if (reset) {
        struct linger none = {.l_onoff = 1, .l_linger = 0};
        setsockopt(channel->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    close(channel->fd); /* which takes it out of epoll */
    channel->fd = -1;
    bytes_free(&channel->pending);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void set(int fd, int level, int name, int value) {
    if (setsockopt(fd, level, name, &value, sizeof value) != 0) die("setsockopt: %s", strerror(errno));
}

int listen_on(int port) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        die("port %d: %s", port, strerror(errno));
    return fd;
}

int accept_from(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    return fd;
}

int connect_to(int port, int receive_buffer) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (receive_buffer > 0) set(fd, SOL_SOCKET, SO_RCVBUF, receive_buffer);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS)
        die("port %d: %s", port, strerror(errno));
    return fd;
}

static void put(struct timers *timers, size_t place, struct timer *timer) {
    timers->heap[place] = timer;
    timer->place = place;
}

static void rise(struct timers *timers, size_t place, struct timer *timer) {
    for (; place > 1 && timers->heap[place / 2]->due_us > timer->due_us; place /= 2)
        put(timers, place, timers->heap[place / 2]);
    put(timers, place, timer);
}

static void sink(struct timers *timers, size_t place, struct timer *timer) {
    for (;;) {
        size_t child = 2 * place;
        if (child > timers->len) break;
        if (child < timers->len && timers->heap[child + 1]->due_us < timers->heap[child]->due_us) child++;
        if (timers->heap[child]->due_us >= timer->due_us) break;
        put(timers, place, timers->heap[child]);
        place = child;
    }
    put(timers, place, timer);
}

void timer_start(struct timers *timers, struct timer *timer, int64_t due_us) {
    timer_stop(timers, timer);
    timer->due_us = due_us;
    if (timers->len + 2 > timers->cap) {
        timers->cap = 2 * (timers->len + 64);
        timers->heap = realloc(timers->heap, timers->cap * sizeof *timers->heap);
        if (timers->heap == NULL) die("out of memory");
    }
    rise(timers, ++timers->len, timer);
}

void timer_stop(struct timers *timers, struct timer *timer) {
    size_t place = timer->place;
    if (place == 0) return;
    timer->place = 0;
    struct timer *last = timers->heap[timers->len--];
    if (last == timer) return;
    if (place > 1 && timers->heap[place / 2]->due_us > last->due_us) rise(timers, place, last);
    else sink(timers, place, last);
}

struct timer *timer_due(struct timers *timers, int64_t now) {
    if (timers->len == 0 || timers->heap[1]->due_us > now) return NULL;
    struct timer *first = timers->heap[1];
    timer_stop(timers, first);
    return first;
}

int64_t timer_next_us(const struct timers *timers) { return timers->len == 0 ? INT64_MAX : timers->heap[1]->due_us; }

int wait_until(int epoll, struct epoll_event *events, int count, int64_t due_us, int64_t wait_us_max) {
    int64_t wait_us = due_us == INT64_MAX ? wait_us_max : due_us - now_us();
    if (wait_us < 0) wait_us = 0;
    if (wait_us > wait_us_max) wait_us = wait_us_max;
    struct timespec wait = {.tv_sec = wait_us / 1000000, .tv_nsec = wait_us % 1000000 * 1000};
    int found = epoll_pwait2(epoll, events, count, &wait, NULL);
    if (found < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
    return found < 0 ? 0 : found;
}

double chance_uniform(struct chance *chance) { /* splitmix64 */
    uint64_t mixed = (chance->state += UINT64_C(0x9e3779b97f4a7c15));
    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((mixed ^ (mixed >> 31)) >> 11) * 0x1p-53;
}
