/* A load generator: one thread, HTTP/1.1 or gRPC on h2c, closed or open loop; prints one line of JSON.

   load_generator -P grpc|http -p PORT -u PATH -b BODY_FILE [-H "name: value"]...
                  (-c REQUESTS_AT_A_TIME [-R RAMP_S] | -r REQUESTS_PER_S) -d SECONDS [-w WARM_UP_S] [-s SEED]
                  [-k CONNECTIONS] [-n MESSAGES] [-W PID,PID,...] [-x]
                  [-C SHARE_CANCELLED] [-T SHARE_RESET] [-F WITHIN_S] [-S SHARE_SLOW] [-z PAUSE_S]
                  [-i WINDOW_BYTES] [-B RECEIVE_BUFFER]

   Open loop: arrivals at random (exponential) times, the same for the same seed; latencies count from the time a
   request was due. Closed loop: its requests start within RAMP_S. What ends inside the window of SECONDS after the
   warm-up is measured; -W reads the CPU time of those processes at the window's two ends. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PATIENCE_US = 15000000 };

struct load load;

static struct samples {
    float *at;
    size_t len, cap;
} first_token_ms, latency_ms;

static void sample(struct samples *samples, double value) {
    if (samples->len == samples->cap) {
        samples->cap = samples->cap > 0 ? 2 * samples->cap : 65536;
        samples->at = realloc(samples->at, samples->cap * sizeof *samples->at);
        if (samples->at == NULL) die("out of memory");
    }
    samples->at[samples->len++] = (float)value;
}

static int by_value(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static double percentile(const struct samples *sorted, double share) {
    return sorted->len == 0 ? -1.0 : (double)sorted->at[(size_t)(share * (double)(sorted->len - 1))];
}

/* User and system time of the watched processes, seconds. */
static double watched_cpu_s(void) {
    double ticks = 0;
    for (int each = 0; each < load.settings.watched_count; each++) {
        char path[64], line[1024];
        unsigned long user, system;
        snprintf(path, sizeof path, "/proc/%d/stat", load.settings.watched[each]);
        FILE *file = fopen(path, "r");
        if (file == NULL) continue;
        const char *rest = fgets(line, sizeof line, file) == NULL ? NULL : strrchr(line, ')');
        if (rest != NULL && sscanf(rest, ") %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu %lu", &user, &system) == 2)
            ticks += (double)(user + system);
        fclose(file);
    }
    return ticks / (double)sysconf(_SC_CLK_TCK);
}

static bool in_window(int64_t now) { return now >= load.window_us && now < load.end_us; }

void note_error(const char *format, ...) {
    va_list list;
    if (load.error[0] != 0) return;
    va_start(list, format);
    vsnprintf(load.error, sizeof load.error, format, list);
    va_end(list);
    for (char *each = load.error; *each != 0; each++)
        if (*each == '"' || *each == '\\' || (unsigned char)*each < ' ') *each = ' ';
}

void count_message(struct request *request, int64_t now) {
    request->messages++;
    if (request->first_us == 0) request->first_us = now;
    load.all.messages++;
    if (in_window(now)) load.window.messages++;
}

static void start(int64_t due_us) {
    const struct settings *settings = &load.settings;
    struct request *request = zeroed(sizeof *request);
    request->begun_us = due_us;
    double drawn = chance_uniform(&load.chance);
    if (drawn < settings->cancel) request->fate = CANCEL;
    else if (drawn < settings->cancel + settings->reset) request->fate = RESET;
    else if (drawn < settings->cancel + settings->reset + settings->slow) request->slow = true;
    load.live++;
    if (load.live > load.live_max) load.live_max = load.live;
    if (request->fate != TO_THE_END) {
        double within_us = chance_uniform(&load.chance) * settings->fate_s * 1e6;
        timer_start(&load.timers, &request->timer, now_us() + (int64_t)within_us);
    }
    if (settings->grpc) http2_start(request);
    else http1_start(request);
}

void finish(struct request *request, bool ok, bool injected) {
    int64_t now = now_us();
    if (ok && request->messages < load.settings.messages_wanted) {
        note_error("short answer: %ld messages", request->messages);
        ok = false;
    }
    struct counts *counts[] = {&load.all, in_window(now) ? &load.window : NULL};
    for (int each = 0; each < 2 && counts[each] != NULL; each++) {
        if (injected) counts[each]->injected++;
        else if (ok) counts[each]->done++;
        else counts[each]->errors++;
    }
    if (ok && !injected && in_window(now) && !request->slow) {
        sample(&first_token_ms, 1e-3 * (double)((request->first_us > 0 ? request->first_us : now) - request->begun_us));
        sample(&latency_ms, 1e-3 * (double)(now - request->begun_us));
    }
    load.live--;
    timer_stop(&load.timers, &request->timer);
    free(request);
    if (load.settings.concurrency > 0 && now < load.end_us) start(now);
}

void drop_peer(struct peer *peer, bool reset) {
    if (peer->dead) return;
    peer->dead = true;
    channel_close(&peer->channel, reset);
    peer->next_dead = load.dead;
    load.dead = peer;
}

static void bury(void) {
    while (load.dead != NULL) {
        struct peer *next = load.dead->next_dead;
        bytes_free(&load.dead->head);
        free(load.dead);
        load.dead = next;
    }
}

/* A request is cancelled, its connection reset, or a slow reader reads again. */
static void timers_due(int64_t now) {
    struct timer *timer;
    while ((timer = timer_due(&load.timers, now)) != NULL) {
        struct request *request = CONTAINER(timer, struct request, timer);
        if (request->slow) {
            if (now < load.end_us) timer_start(&load.timers, timer, now + load.settings.pause_us);
            else request->slow = false; /* the bench does not wait for them */
            if (load.settings.grpc) http2_give_back(request);
            else http1_read_slowly(request);
        } else if (load.settings.grpc) {
            http2_end(request, request->fate == RESET);
        } else {
            http1_end(request, request->fate == RESET);
        }
    }
}

static void served(struct peer *peer, uint32_t events) {
    if (peer->dead) return;
    if (events & EPOLLOUT) channel_flush(&peer->channel);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        if (load.settings.grpc) http2_read(peer);
        else http1_read(peer);
    }
    if (!peer->dead && peer->channel.broken) {
        if (load.settings.grpc) http2_lost(peer);
        else http1_lost(peer);
    }
}

static void print_result(double window_cpu_s, double measured_s) {
    qsort(first_token_ms.at, first_token_ms.len, sizeof(float), by_value);
    qsort(latency_ms.at, latency_ms.len, sizeof(float), by_value);
    printf("{\"done\": %ld, \"errors\": %ld, \"injected\": %ld, \"messages\": %ld, "
           "\"all_done\": %ld, \"all_errors\": %ld, \"all_injected\": %ld, \"all_messages\": %ld, \"unfinished\": %d, "
           "\"live_max\": %d, \"window_s\": %.6f, "
           "\"cpu_s\": %.3f, \"ttft_ms_p50\": %.4f, \"ttft_ms_p99\": %.4f, \"latency_ms_p50\": %.4f, "
           "\"latency_ms_p99\": %.4f, \"error\": \"%s\"}\n",
           load.window.done, load.window.errors, load.window.injected, load.window.messages, load.all.done,
           load.all.errors, load.all.injected, load.all.messages, load.live, load.live_max, measured_s, window_cpu_s,
           percentile(&first_token_ms, .5), percentile(&first_token_ms, .99), percentile(&latency_ms, .5),
           percentile(&latency_ms, .99), load.error);
}

static void read_settings(int count, char **arguments) {
    struct settings *settings = &load.settings;
    int option;
    *settings = (struct settings){
        .connections = 1, .window = 1 << 22, .measured_us = 5000000, .path = "/", .fate_s = 1.0, .pause_us = 500000};
    while ((option = getopt(count, arguments, "P:p:u:b:H:c:r:d:w:R:k:n:s:W:xC:T:F:S:z:i:B:")) != -1) {
        switch (option) {
        case 'P': settings->grpc = optarg[0] == 'g'; break;
        case 'p': settings->port = atoi(optarg); break;
        case 'u': settings->path = optarg; break;
        case 'b': settings->body = bytes_of_file(optarg); break;
        case 'H':
            if (settings->field_count == 32 || strstr(optarg, ": ") == NULL) die("-H: \"name: value\", at most 32");
            settings->fields[settings->field_count++] = optarg;
            break;
        case 'c': settings->concurrency = atoi(optarg); break;
        case 'r': settings->rate_per_s = atof(optarg); break;
        case 'd': settings->measured_us = (int64_t)(1e6 * atof(optarg)); break;
        case 'w': settings->warm_up_us = (int64_t)(1e6 * atof(optarg)); break;
        case 'R': settings->ramp_us = (int64_t)(1e6 * atof(optarg)); break;
        case 'k': settings->connections = atoi(optarg); break;
        case 'n': settings->messages_wanted = atol(optarg); break;
        case 's': load.chance.state = strtoull(optarg, NULL, 10); break;
        case 'W':
            for (char *each = strtok(optarg, ","); each != NULL && settings->watched_count < 256;
                 each = strtok(NULL, ","))
                settings->watched[settings->watched_count++] = atoi(each);
            break;
        case 'x': settings->cut = true; break;
        case 'C': settings->cancel = atof(optarg); break;
        case 'T': settings->reset = atof(optarg); break;
        case 'F': settings->fate_s = atof(optarg); break;
        case 'S': settings->slow = atof(optarg); break;
        case 'z': settings->pause_us = (int64_t)(1e6 * atof(optarg)); break;
        case 'i': settings->window = atoi(optarg); break;
        case 'B': settings->receive_buffer = atoi(optarg); break;
        default: die("see the head of load.c for how it is used");
        }
    }
    if (settings->port == 0 || (settings->concurrency > 0) == (settings->rate_per_s > 0))
        die("needs -p and one of -c and -r");
    if (settings->connections < 1 || settings->connections > 1024) die("-k: 1 to 1024");
}

static int64_t after_us(void) {
    return (int64_t)(-1e6 * log(1.0 - chance_uniform(&load.chance)) / load.settings.rate_per_s);
}

/* Starts what is due; returns when the next one is. */
static int64_t arrivals(int64_t now) {
    static int64_t next_us;
    static int begun;
    const struct settings *settings = &load.settings;
    if (settings->concurrency > 0) {
        for (; begun < settings->concurrency; begun++) {
            int64_t due_us = load.begin_us + settings->ramp_us * begun / settings->concurrency;
            if (due_us > now) return due_us;
            start(now);
        }
        return INT64_MAX;
    }
    if (next_us == 0) next_us = load.begin_us + after_us();
    for (; next_us <= now && next_us < load.end_us; next_us += after_us())
        start(next_us);
    return next_us < load.end_us ? next_us : INT64_MAX;
}

int main(int count, char **arguments) {
    struct epoll_event events[512];
    struct rlimit files = {1 << 17, 1 << 17};
    double cpu_s = 0, measured_s = 0;
    int64_t read_us = 0;
    enum { BEFORE, INSIDE, AFTER } phase = BEFORE;
    read_settings(count, arguments);
    signal(SIGPIPE, SIG_IGN);
    setrlimit(RLIMIT_NOFILE, &files);
    http1_prepare();
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.begin_us = now_us();
    load.window_us = load.begin_us + load.settings.warm_up_us;
    load.end_us = load.window_us + load.settings.measured_us;
    for (;;) {
        int64_t now = now_us();
        if (phase == BEFORE && now >= load.window_us) {
            phase = INSIDE, cpu_s = -watched_cpu_s(), read_us = now;
            load.window_us = now; /* what is counted is counted from the reading on */
        } else if (phase == INSIDE && now >= load.end_us) {
            phase = AFTER, cpu_s += watched_cpu_s(), measured_s = 1e-6 * (double)(now - read_us);
        }
        int64_t next_us = arrivals(now);
        timers_due(now);
        bool over = load.live == 0 || load.settings.cut || now > load.end_us + PATIENCE_US;
        if (phase == AFTER && over) break;
        int64_t turn_us = phase == BEFORE ? load.window_us : phase == INSIDE ? load.end_us : INT64_MAX;
        if (timer_next_us(&load.timers) < next_us) next_us = timer_next_us(&load.timers);
        if (turn_us < next_us) next_us = turn_us;
        int found = wait_until(load.epoll, events, 512, next_us, 50000);
        for (int each = 0; each < found; each++)
            served(events[each].data.ptr, events[each].events);
        bury();
    }
    print_result(cpu_s, measured_s);
    return 0;
}
