/* The mock's gRPC messages: protobuf by hand, and what of a request a replica has to know. */
#define _GNU_SOURCE
#include "mock.h"

#include <string.h>
#include <time.h>

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_LENGTH = 2, WIRE_FIXED32 = 5 };
enum { ROUTERS_MAX = 256, STATE_READY = 2, FINISH_LENGTH = 2, INPUT_TOKENS = 32, KV_CAPACITY = 10000000 };

/* How far each router's numbers went at each replica, as load reports say. */
static struct {
    const struct listener *listener;
    char id[128];
    uint64_t dispatches;
} routers[ROUTERS_MAX];

static void varint(struct bytes *into, uint64_t value) {
    uint8_t part[10];
    size_t len = 0;
    do {
        part[len] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
        len++;
    } while (value > 0);
    bytes_add(into, part, len);
}

static void number(struct bytes *into, uint32_t field, uint64_t value) {
    varint(into, field << 3 | WIRE_VARINT);
    varint(into, value);
}

static void text(struct bytes *into, uint32_t field, const void *from, size_t len) {
    varint(into, field << 3 | WIRE_LENGTH);
    varint(into, len);
    bytes_add(into, from, len);
}

/* fairlead.engine.v1.LoadReport. */
static void load_report(struct bytes *into, struct stream *stream) {
    struct listener *listener = stream->connection->listener;
    struct timespec wall;
    struct bytes when = {0};
    clock_gettime(CLOCK_REALTIME, &wall);
    number(&when, 1, (uint64_t)wall.tv_sec);
    number(&when, 2, (uint64_t)wall.tv_nsec);
    text(into, 1, listener->replica_id, strlen(listener->replica_id));
    number(into, 2, ++listener->sequence);
    text(into, 3, when.at, when.len);
    number(into, 6, (uint64_t)listener->running);
    number(into, 9, mock.tokens_ever);
    number(into, 10, STATE_READY);
    number(into, 13, KV_CAPACITY);
    number(into, 15, routers[stream->router].dispatches);
    bytes_free(&when);
}

/* fairlead.engine.v1.TicketReports: it is so late that no ticket can be redeemed any more, which settles all of them.
 */
static void ticket_reports(struct bytes *into, const struct stream *stream) {
    number(into, 1, (uint64_t)stream->sent + 1);
    number(into, 2, INT64_MAX / 2);
}

bool reports(const struct stream *stream) {
    return stream->dialect == ENGINE_LOAD || stream->dialect == ENGINE_TICKETS;
}

/* fairlead.engine.v1.EngineGenerateResponse: a piece, on the first and the last with the load, on the last with the
 * end. */
static void engine_message(struct stream *stream, struct bytes *into) {
    bool first = stream->sent == 0, last = stream->sent + 1 == stream->tokens;
    bytes_add(into, mock.templates.piece.at, mock.templates.piece.len);
    if (last) {
        struct bytes usage = {0};
        number(&usage, 1, INPUT_TOKENS);
        number(&usage, 3, (uint64_t)stream->tokens);
        number(into, 4, FINISH_LENGTH);
        text(into, 5, usage.at, usage.len);
        bytes_free(&usage);
    }
    if ((first || last) && stream->dialect == ENGINE_GENERATE) {
        struct bytes load = {0};
        load_report(&load, stream);
        text(into, 8, load.at, load.len);
        bytes_free(&load);
    }
}

static void copy(struct bytes *into, const struct bytes *from) { bytes_add(into, from->at, from->len); }

void next_message(struct stream *stream, struct bytes *into) {
    static const uint8_t prefix[5];
    size_t begin = into->len;
    bytes_add(into, prefix, sizeof prefix);
    switch (stream->dialect) {
    case ENGINE_LOAD: load_report(into, stream); break;
    case ENGINE_TICKETS: ticket_reports(into, stream); break;
    case ASSIGNMENTS: break;
    case PUBLIC_UNARY: copy(into, &mock.templates.unary); break;
    case TRITON_STREAM:
        copy(into, stream->sent + 1 == stream->tokens ? &mock.templates.triton_last : &mock.templates.triton_token);
        break;
    default: engine_message(stream, into);
    }
    size_t len = into->len - begin - sizeof prefix;
    for (int each = 0; each < 4; each++)
        into->at[begin + 1 + (size_t)each] = (uint8_t)(len >> (24 - 8 * each));
}

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

static uint32_t router_number(const struct listener *listener, const uint8_t *id, size_t len) {
    if (len >= sizeof routers[0].id) len = sizeof routers[0].id - 1;
    for (uint32_t each = 0; each < ROUTERS_MAX; each++) {
        if (routers[each].listener == NULL) {
            memcpy(routers[each].id, id, len);
            routers[each].listener = listener;
        }
        bool same = strlen(routers[each].id) == len && memcmp(routers[each].id, id, len) == 0;
        if (same && routers[each].listener == listener) return each;
    }
    return ROUTERS_MAX - 1;
}

void dispatched(struct stream *stream) {
    const uint32_t router_field = stream->dialect == ENGINE_LOAD ? 1 : 8, number_field = 9;
    const uint8_t *at = stream->request.at + 5, *end = stream->request.at + stream->request.len;
    uint64_t key, value, dispatch = 0;
    stream->router = ROUTERS_MAX - 1;
    while (stream->request.len >= 5 && at < end && read_varint(&at, end, &key)) {
        switch (key & 7) {
        case WIRE_VARINT:
            if (!read_varint(&at, end, &value)) return;
            if (key >> 3 == number_field) dispatch = value;
            break;
        case WIRE_LENGTH:
            if (!read_varint(&at, end, &value) || value > (uint64_t)(end - at)) return;
            if (key >> 3 == router_field) stream->router = router_number(stream->connection->listener, at, value);
            at += value;
            break;
        case WIRE_FIXED64: at += 8; break;
        case WIRE_FIXED32: at += 4; break;
        default: return;
        }
    }
    if (stream->dialect == ENGINE_GENERATE && dispatch > routers[stream->router].dispatches)
        routers[stream->router].dispatches = dispatch;
}
