/* A BGP-4 speaker (RFC 4271) whose sessions survive the death of the process or the machine: its neighbours see no session go
 * down and no route withdrawn. It is linked with libtcpr.
 *
 * usage: bgp_speaker ADDRESS PORT AS ROUTER-ID [hold=SECONDS] [announce=PREFIX/LENGTH]... NEIGHBOUR...
 *
 * A NEIGHBOUR is ADDRESS=AS: it is waited for at ADDRESS and PORT of the first line; or ADDRESS:PORT=AS: it is called, too. All
 * neighbours are external. What one of them announces is passed on to the others, with what is to be announced anyway. Routes go
 * into no kernel: this is a route server that is in the path, small enough to be read.
 *
 * Run it by `tcpr run`; or by itself, then it hosts the manager as a thread. ADDRESS is the virtual IP, PORT a protected port, and
 * each neighbour that is called has a [[service.outgoing]] in the configuration. Both members are given the same arguments.
 *
 * Spoken: OPEN with capabilities (RFC 5492), 4-octet AS numbers with neighbours that know them and those that don't (RFC 6793),
 * IPv4 unicast, KEEPALIVE and hold time, a NOTIFICATION for each thing that is wrong with what a neighbour sends (RFC 4271,
 * section 6), connection collision (6.8). Not spoken: internal BGP, filters, route refresh, graceful restart (which is what this
 * program does not need).
 *
 * What has to be known to go on with a session, and where it is kept:
 *
 * - The checkpoint of its connection (tcpr_checkpoint) has struct session: the state, what the OPEN messages have agreed on, and the
 *   part of a message that has come so far.
 * - What the neighbour has announced (its Adj-RIB-In) is under keys, one for each route (tcpr_put, tcpr_delete).
 * - What it was told (its Adj-RIB-Out) follows from all that: whenever a turn ends, each neighbour has been told the best routes.
 *   This is because a message is dealt with in one turn: reading it, putting its routes, telling the other neighbours, and the
 *   checkpoint which says that it is done. A failure leaves all of that or nothing. If nothing, the message is read again.
 * - Timers start anew. The KEEPALIVE that is sent at once on a recovered session keeps the neighbour from losing patience.
 *
 * In this file, from the top down: bytes; messages (what they say, and what is wrong with them); routes (which one is better, what a
 * neighbour is told of it); the state machine; the loop. Messages and routes are functions of their arguments: no input or output.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include <tcpr.h>

#include "common.h"

enum {
    NEIGHBOURS = 16, ROUTES = 10000, OWN = 64,
    HEADER = 19, LONGEST = 4096,
    ATTRIBUTES = 512,           /* of a route with more than that nobody is told: a turn has room for 1 MiB of data */
    BACKLOG = 8 << 20,          /* a neighbour that is so far behind is given up */
    OPEN_WAIT = 240,            /* seconds until an OPEN must have come */
    RETRY = 2,                  /* seconds between two calls */
    CALL_PORTS = 64, FIRST_CALL_PORT = 20000    /* see call() */
};

enum message { OPEN = 1, UPDATE = 2, NOTIFICATION = 3, KEEPALIVE = 4 };

/* Codes of NOTIFICATION, and of what is wrong. */
enum { HEADER_ERROR = 1, OPEN_ERROR = 2, UPDATE_ERROR = 3, HOLD_TIMER_EXPIRED = 4, FSM_ERROR = 5, CEASE = 6 };
enum { NOT_SYNCHRONISED = 1, BAD_LENGTH = 2, BAD_TYPE = 3 };
enum { BAD_VERSION = 1, BAD_PEER_AS = 2, BAD_IDENTIFIER = 3, BAD_PARAMETER = 4, BAD_HOLD_TIME = 6, BAD_CAPABILITY = 7 };
enum {
    MALFORMED_LIST = 1, UNKNOWN_WELL_KNOWN = 2, MISSING_WELL_KNOWN = 3, BAD_FLAGS = 4, BAD_ATTRIBUTE_LENGTH = 5, BAD_ORIGIN = 6,
    BAD_NEXT_HOP = 8, BAD_OPTIONAL = 9, BAD_NETWORK = 10, BAD_AS_PATH = 11
};
enum { SHUTDOWN = 2, COLLISION = 7, NO_RESOURCES = 8 };

enum attribute {
    ORIGIN = 1, AS_PATH = 2, NEXT_HOP = 3, MED = 4, LOCAL_PREF = 5, ATOMIC_AGGREGATE = 6, AGGREGATOR = 7, AS4_PATH = 17,
    AS4_AGGREGATOR = 18
};
enum { OPTIONAL = 0x80, TRANSITIVE = 0x40, PARTIAL = 0x20, EXTENDED = 0x10 };
enum { AS_SET = 1, AS_SEQUENCE = 2, AS_TRANS = 23456 };
enum { CAPABILITY = 2, MULTIPROTOCOL = 1, FOUR_OCTETS = 65 };

/* ---- bytes -------------------------------------------------------------------------------------------------- */

static uint32_t number(const unsigned char *at, size_t bytes)
{
    uint32_t n = 0;

    while (bytes-- > 0)
        n = n << 8 | *at++;
    return n;
}

static void add_number(struct buffer *b, uint32_t n, size_t bytes)
{
    unsigned char all[4] = { (unsigned char)(n >> 24), (unsigned char)(n >> 16), (unsigned char)(n >> 8), (unsigned char)n };

    buffer_add(b, all + 4 - bytes, bytes);
}

/* Begins something whose length is put before it when it is complete: returns where. */
static size_t begin(struct buffer *b, size_t bytes)
{
    add_number(b, 0, bytes);
    return buffer_len(b);
}

static void complete(struct buffer *b, size_t since, size_t bytes)
{
    size_t n = buffer_len(b) - since;
    char *at = b->data + b->start + since;

    while (bytes-- > 0) {
        *--at = (char)n;
        n >>= 8;
    }
}

/* What is left to be read. */
struct bytes {
    const unsigned char *at;
    size_t n;
};

/* The next n bytes; NULL: there are not so many. */
static const unsigned char *take(struct bytes *b, size_t n)
{
    const unsigned char *at = b->at;

    if (n > b->n)
        return NULL;
    b->at += n;
    b->n -= n;
    return at;
}

/* ---- messages ------------------------------------------------------------------------------------------------ */

/* What is wrong with a message: NOTIFICATION's code, subcode and data. */
struct fault {
    unsigned code, subcode;
    unsigned char data[256];
    size_t n;
};

/* Always -1: what is returned where something is wrong. */
static int wrong(struct fault *f, unsigned code, unsigned subcode, const void *data, size_t n)
{
    f->code = code;
    f->subcode = subcode;
    f->n = n < sizeof f->data ? n : sizeof f->data;
    if (n > 0)
        memcpy(f->data, data, f->n);
    return -1;
}

/* The length of the message that begins here; 0: it has not come whole; -1: it is none. */
static int read_header(const unsigned char *at, size_t have, struct fault *f)
{
    static const size_t least[] = { 0, 29, 23, 21, HEADER };
    size_t i, n;

    for (i = 0; i < 16 && i < have; i++)
        if (at[i] != 0xff)
            return wrong(f, HEADER_ERROR, NOT_SYNCHRONISED, NULL, 0);
    if (have < HEADER)
        return 0;
    n = number(at + 16, 2);
    if (n < HEADER || n > LONGEST)
        return wrong(f, HEADER_ERROR, BAD_LENGTH, at + 16, 2);
    if (at[18] < OPEN || at[18] > KEEPALIVE)
        return wrong(f, HEADER_ERROR, BAD_TYPE, at + 18, 1);
    if (n < least[at[18]] || (at[18] == KEEPALIVE && n > HEADER))
        return wrong(f, HEADER_ERROR, BAD_LENGTH, at + 16, 2);
    return have < n ? 0 : (int)n;
}

/* What an OPEN says. */
struct opening {
    uint32_t as, identifier;
    unsigned hold;
    int four_octets, multiprotocol, ipv4;
};

static int read_capabilities(struct bytes all, struct opening *o, struct fault *f)
{
    const unsigned char *head, *value;

    while (all.n > 0) {
        if ((head = take(&all, 2)) == NULL || (value = take(&all, head[1])) == NULL)
            return wrong(f, OPEN_ERROR, 0, NULL, 0);
        if (head[0] == FOUR_OCTETS && head[1] == 4) {
            o->four_octets = 1;
            o->as = number(value, 4);
        } else if (head[0] == MULTIPROTOCOL && head[1] == 4) {
            o->multiprotocol = 1;
            o->ipv4 |= number(value, 2) == 1 && value[3] == 1;
        }
    }
    return 0;
}

/* The body of an OPEN, which has at least 10 bytes, of a neighbour that is to have this AS. */
static int read_open(struct bytes body, uint32_t as, struct opening *o, struct fault *f)
{
    static const unsigned char version[2] = { 0, 4 }, ipv4[] = { MULTIPROTOCOL, 4, 0, 1, 0, 1 };
    const unsigned char *fixed = take(&body, 10), *head;

    memset(o, 0, sizeof *o);
    if (fixed[0] != 4)
        return wrong(f, OPEN_ERROR, BAD_VERSION, version, 2);
    o->as = number(fixed + 1, 2);
    o->hold = number(fixed + 3, 2);
    o->identifier = number(fixed + 5, 4);
    if (fixed[9] != body.n)
        return wrong(f, OPEN_ERROR, 0, NULL, 0);
    while (body.n > 0) {
        const unsigned char *value;

        if ((head = take(&body, 2)) == NULL || (value = take(&body, head[1])) == NULL)
            return wrong(f, OPEN_ERROR, 0, NULL, 0);
        if (head[0] != CAPABILITY)
            return wrong(f, OPEN_ERROR, BAD_PARAMETER, NULL, 0);
        if (read_capabilities((struct bytes){ value, head[1] }, o, f) < 0)
            return -1;
    }
    if (o->as != as || as == 0)
        return wrong(f, OPEN_ERROR, BAD_PEER_AS, NULL, 0);
    if (o->hold == 1 || o->hold == 2)
        return wrong(f, OPEN_ERROR, BAD_HOLD_TIME, NULL, 0);
    if (o->identifier == 0)
        return wrong(f, OPEN_ERROR, BAD_IDENTIFIER, NULL, 0);
    if (o->multiprotocol && !o->ipv4)
        return wrong(f, OPEN_ERROR, BAD_CAPABILITY, ipv4, sizeof ipv4);
    return 0;
}

struct prefix {
    uint32_t address;
    unsigned length;
};

/* The next prefix of a list of them. */
static int read_prefix(struct bytes *list, struct prefix *p, struct fault *f)
{
    const unsigned char *length = take(list, 1), *at;
    size_t n = (*length + 7u) / 8;

    if (*length > 32 || (at = take(list, n)) == NULL)
        return wrong(f, UPDATE_ERROR, BAD_NETWORK, NULL, 0);
    p->length = *length;
    p->address = n == 0 ? 0 : number(at, n) << (32 - 8 * n);
    if (p->length < 32)
        p->address &= ~(UINT32_MAX >> p->length);
    return 0;
}

static int read_prefixes(struct bytes list, struct fault *f)
{
    struct prefix p;

    while (list.n > 0)
        if (read_prefix(&list, &p, f) < 0)
            return -1;
    return 0;
}

/* The attributes of a route, as they are kept: numbers of ASes have four octets. First the path, and then other attributes, as they
 * are passed on. */
struct attributes {
    uint32_t identifier;        /* of the neighbour */
    uint32_t med;
    uint8_t origin, has_med;
    uint16_t path, others;      /* bytes of each */
    unsigned char bytes[ATTRIBUTES];
};

static size_t size_of(const struct attributes *a)
{
    return offsetof(struct attributes, bytes) + a->path + a->others;
}

/* A path of numbers of two octets or four, as one of four. -1: it is none. */
static int read_path(struct bytes path, size_t octets, struct buffer *to)
{
    const unsigned char *head, *at;
    size_t i;

    while (path.n > 0) {
        if ((head = take(&path, 2)) == NULL || (head[0] != AS_SET && head[0] != AS_SEQUENCE) || head[1] == 0 ||
            (at = take(&path, head[1] * octets)) == NULL)
            return -1;
        buffer_add(to, head, 2);
        for (i = 0; i < head[1]; i++)
            add_number(to, number(at + i * octets, octets), 4);
    }
    return 0;
}

/* How long a path counts: a set is one. */
static size_t path_length(const unsigned char *path, size_t n)
{
    struct bytes left = { path, n };
    const unsigned char *head;
    size_t length = 0;

    while ((head = take(&left, 2)) != NULL && take(&left, head[1] * 4u) != NULL)
        length += head[0] == AS_SET ? 1 : head[1];
    return length;
}

static int path_has(const unsigned char *path, size_t n, uint32_t as)
{
    struct bytes left = { path, n };
    const unsigned char *head, *at;
    unsigned i;

    while ((head = take(&left, 2)) != NULL && (at = take(&left, head[1] * 4u)) != NULL)
        for (i = 0; i < head[1]; i++)
            if (number(at + 4 * i, 4) == as)
                return 1;
    return 0;
}

/* What a neighbour without 4-octet numbers has put into AS_PATH and AS4_PATH, as one path: the beginning of the former, as much as it
 * is longer, and the latter. (RFC 6793, section 4.2.3.) */
static void merge_paths(struct buffer *path, const struct buffer *as4)
{
    const unsigned char *at = (unsigned char *)path->data + path->start, *head;
    struct bytes left = { at, buffer_len(path) };
    size_t all = path_length(at, left.n), tail = path_length((unsigned char *)as4->data + as4->start, buffer_len(as4)), more;
    struct buffer merged = { 0 };

    if (all < tail || tail == 0)
        return;
    for (more = all - tail; more > 0 && (head = take(&left, 2)) != NULL;) {
        unsigned char some = head[0] == AS_SET || head[1] <= more ? head[1] : (unsigned char)more;

        buffer_add(&merged, head, 1);
        buffer_add(&merged, &some, 1);
        buffer_add(&merged, take(&left, head[1] * 4u), some * 4u);
        more -= head[0] == AS_SET ? 1 : some;
    }
    buffer_add(&merged, as4->data + as4->start, buffer_len(as4));
    free(path->data);
    *path = merged;
}

/* Who has sent a message, as far as it matters for what is in it. */
struct sender {
    uint32_t as, identifier;
    int four_octets;
};

/* What an UPDATE says. */
struct update {
    struct bytes withdrawn, announced;
    int usable;                 /* what is announced has attributes that are kept; else it counts as withdrawn */
    struct attributes attributes;
};

/* One attribute: head is flags and type, and the fault's data is the attribute as it came. */
static int check_attribute(const unsigned char *head, struct bytes whole, struct bytes value, int four_octets, struct fault *f)
{
    static const struct { unsigned char flags; int length; } known[] = {
        [ORIGIN] = { TRANSITIVE, 1 }, [AS_PATH] = { TRANSITIVE, -1 }, [NEXT_HOP] = { TRANSITIVE, 4 }, [MED] = { OPTIONAL, 4 },
        [LOCAL_PREF] = { TRANSITIVE, 4 }, [ATOMIC_AGGREGATE] = { TRANSITIVE, 0 },
        [AGGREGATOR] = { OPTIONAL | TRANSITIVE, 8 }, [AS4_PATH] = { OPTIONAL | TRANSITIVE, -1 },
        [AS4_AGGREGATOR] = { OPTIONAL | TRANSITIVE, -1 },
    };
    unsigned flags = head[0], type = head[1];
    int length;

    if (type >= sizeof known / sizeof *known || known[type].flags == 0) {
        if (!(flags & OPTIONAL))
            return wrong(f, UPDATE_ERROR, UNKNOWN_WELL_KNOWN, whole.at, whole.n);
        return 0;
    }
    if ((flags & (OPTIONAL | TRANSITIVE)) != known[type].flags ||
        ((flags & PARTIAL) && known[type].flags != (OPTIONAL | TRANSITIVE)))
        return wrong(f, UPDATE_ERROR, BAD_FLAGS, whole.at, whole.n);
    length = type == AGGREGATOR && !four_octets ? 6 : known[type].length;
    if (length >= 0 && value.n != (size_t)length)
        return wrong(f, UPDATE_ERROR, BAD_ATTRIBUTE_LENGTH, whole.at, whole.n);
    if (type == ORIGIN && value.at[0] > 2)
        return wrong(f, UPDATE_ERROR, BAD_ORIGIN, whole.at, whole.n);
    if (type == NEXT_HOP && (value.at[0] == 0 || value.at[0] == 127 || value.at[0] >= 224))
        return wrong(f, UPDATE_ERROR, BAD_NEXT_HOP, whole.at, whole.n);
    return 0;
}

static void add_attribute(struct buffer *b, unsigned flags, enum attribute type, const void *value, size_t n)
{
    add_number(b, n > 255 ? flags | EXTENDED : flags & ~(unsigned)EXTENDED, 1);
    add_number(b, type, 1);
    add_number(b, (uint32_t)n, n > 255 ? 2 : 1);
    buffer_add(b, value, n);
}

/* Attributes that were looked at one by one, put together. */
struct parts {
    struct buffer path, path4, others;
    unsigned char aggregator[8], aggregator4[8];
    int has_aggregator, has_aggregator4;
    uint32_t next_hop;
};

static void keep_attributes(struct parts *p, const struct sender *from, uint32_t own_as, uint32_t own_address, struct update *u)
{
    struct attributes *a = &u->attributes;

    if (!from->four_octets && (!p->has_aggregator || number(p->aggregator, 4) == AS_TRANS)) {
        merge_paths(&p->path, &p->path4);
        if (p->has_aggregator && p->has_aggregator4)
            memcpy(p->aggregator, p->aggregator4, 8);
    }
    if (p->has_aggregator)
        add_attribute(&p->others, OPTIONAL | TRANSITIVE, AGGREGATOR, p->aggregator, 8);
    u->usable = buffer_len(&p->path) + buffer_len(&p->others) <= ATTRIBUTES && p->next_hop != own_address;
    if (!u->usable)
        return;
    a->identifier = from->identifier;
    a->path = (uint16_t)buffer_len(&p->path);
    a->others = (uint16_t)buffer_len(&p->others);
    memcpy(a->bytes, p->path.data + p->path.start, a->path);
    if (a->others > 0)
        memcpy(a->bytes + a->path, p->others.data + p->others.start, a->others);
    /* A route that has been here already. */
    u->usable = !path_has(a->bytes, a->path, own_as);
}

static int read_attributes(struct bytes list, const struct sender *from, struct parts *p, struct update *u, struct fault *f)
{
    static const unsigned char needed[] = { ORIGIN, AS_PATH, NEXT_HOP };
    char seen[256] = { 0 };
    const unsigned char *first;
    size_t i;

    while (list.n > 0) {
        struct bytes whole = list, value;
        const unsigned char *head = take(&list, 2), *length;
        size_t octets;

        if (head == NULL || (length = take(&list, head[0] & EXTENDED ? 2 : 1)) == NULL)
            return wrong(f, UPDATE_ERROR, MALFORMED_LIST, NULL, 0);
        value.n = number(length, head[0] & EXTENDED ? 2 : 1);
        if ((value.at = take(&list, value.n)) == NULL || seen[head[1]]++)
            return wrong(f, UPDATE_ERROR, MALFORMED_LIST, NULL, 0);
        whole.n -= list.n;
        if (check_attribute(head, whole, value, from->four_octets, f) < 0)
            return -1;
        octets = from->four_octets ? 4 : 2;
        switch (head[1]) {
        case ORIGIN:
            u->attributes.origin = value.at[0];
            break;
        case AS_PATH:
            if (read_path(value, octets, &p->path) < 0)
                return wrong(f, UPDATE_ERROR, BAD_AS_PATH, NULL, 0);
            break;
        case NEXT_HOP:
            p->next_hop = number(value.at, 4);
            break;
        case MED:
            u->attributes.has_med = 1;
            u->attributes.med = number(value.at, 4);
            break;
        case LOCAL_PREF:        /* not for external neighbours to say */
            break;
        case ATOMIC_AGGREGATE:
            add_attribute(&p->others, TRANSITIVE, ATOMIC_AGGREGATE, NULL, 0);
            break;
        case AGGREGATOR:
            p->has_aggregator = 1;
            memset(p->aggregator, 0, 8);
            memcpy(p->aggregator + 4 - octets, value.at, octets);
            memcpy(p->aggregator + 4, value.at + octets, 4);
            break;
        case AS4_PATH:          /* one that makes no sense is ignored */
            if (from->four_octets || read_path(value, 4, &p->path4) < 0)
                buffer_drop(&p->path4, buffer_len(&p->path4));
            break;
        case AS4_AGGREGATOR:    /* one that makes no sense is ignored (RFC 6793, section 6) */
            if (!from->four_octets && value.n == 8) {
                p->has_aggregator4 = 1;
                memcpy(p->aggregator4, value.at, 8);
            }
            break;
        default:                /* unknown: passed on, or not */
            if (head[0] & TRANSITIVE)
                add_attribute(&p->others, head[0] | PARTIAL, head[1], value.at, value.n);
        }
    }
    if (u->announced.n == 0)
        return 0;
    for (i = 0; i < sizeof needed; i++)
        if (!seen[needed[i]])
            return wrong(f, UPDATE_ERROR, MISSING_WELL_KNOWN, needed + i, 1);
    /* A path begins with whoever sends it. */
    first = (unsigned char *)p->path.data + p->path.start;
    if (buffer_len(&p->path) == 0 || first[0] != AS_SEQUENCE || number(first + 2, 4) != from->as)
        return wrong(f, UPDATE_ERROR, BAD_AS_PATH, NULL, 0);
    return 0;
}

/* The body of an UPDATE, which has at least 4 bytes. */
static int read_update(struct bytes body, const struct sender *from, uint32_t own_as, uint32_t own_address, struct update *u,
                       struct fault *f)
{
    const unsigned char *length = take(&body, 2);
    struct bytes list;
    struct parts parts = { 0 };
    int result;

    memset(u, 0, sizeof *u);
    u->withdrawn.n = number(length, 2);
    if ((u->withdrawn.at = take(&body, u->withdrawn.n)) == NULL || (length = take(&body, 2)) == NULL)
        return wrong(f, UPDATE_ERROR, MALFORMED_LIST, NULL, 0);
    list.n = number(length, 2);
    if ((list.at = take(&body, list.n)) == NULL)
        return wrong(f, UPDATE_ERROR, MALFORMED_LIST, NULL, 0);
    u->announced = body;
    result = read_attributes(list, from, &parts, u, f);
    if (result == 0)
        result = read_prefixes(u->withdrawn, f);
    if (result == 0)
        result = read_prefixes(u->announced, f);
    if (result == 0 && u->announced.n > 0)
        keep_attributes(&parts, from, own_as, own_address, u);
    free(parts.path.data);
    free(parts.path4.data);
    free(parts.others.data);
    return result;
}

/* ---- messages that are sent ---- */

static size_t begin_message(struct buffer *b, enum message type)
{
    size_t since = buffer_len(b);

    add_number(b, UINT32_MAX, 4);
    add_number(b, UINT32_MAX, 4);
    add_number(b, UINT32_MAX, 4);
    add_number(b, UINT32_MAX, 4);
    add_number(b, 0, 2);
    add_number(b, type, 1);
    return since;
}

static void end_message(struct buffer *b, size_t since)
{
    uint16_t n = htons((uint16_t)(buffer_len(b) - since));

    memcpy(b->data + b->start + since + 16, &n, 2);
}

static void add_keepalive(struct buffer *b)
{
    end_message(b, begin_message(b, KEEPALIVE));
}

static void add_notification(struct buffer *b, const struct fault *f)
{
    size_t since = begin_message(b, NOTIFICATION);

    add_number(b, f->code, 1);
    add_number(b, f->subcode, 1);
    buffer_add(b, f->data, f->n);
    end_message(b, since);
}

static void add_open(struct buffer *b, uint32_t as, unsigned hold, uint32_t identifier)
{
    static const unsigned char ipv4[] = { MULTIPROTOCOL, 4, 0, 1, 0, 1 };
    size_t since = begin_message(b, OPEN), parameters, capabilities;

    add_number(b, 4, 1);
    add_number(b, as > 65535 ? AS_TRANS : as, 2);
    add_number(b, hold, 2);
    add_number(b, identifier, 4);
    parameters = begin(b, 1);
    add_number(b, CAPABILITY, 1);
    capabilities = begin(b, 1);
    buffer_add(b, ipv4, sizeof ipv4);
    add_number(b, FOUR_OCTETS, 1);
    add_number(b, 4, 1);
    add_number(b, as, 4);
    complete(b, capabilities, 1);
    complete(b, parameters, 1);
    end_message(b, since);
}

static void add_prefix(struct buffer *b, const struct prefix *p)
{
    size_t n = (p->length + 7) / 8;

    add_number(b, p->length, 1);
    add_number(b, n == 0 ? 0 : p->address >> (32 - 8 * n), n);
}

static void add_withdrawal(struct buffer *b, const struct prefix *p)
{
    size_t since = begin_message(b, UPDATE), list = begin(b, 2);

    add_prefix(b, p);
    complete(b, list, 2);
    add_number(b, 0, 2);
    end_message(b, since);
}

/* A path with our own AS before it. Returns whether an AS had no room in two octets. */
static int add_path(struct buffer *b, const struct attributes *a, uint32_t own_as, size_t octets)
{
    struct bytes left = { a->bytes, a->path };
    const unsigned char *head, *at;
    int trans = octets == 2 && own_as > 65535, joins = a->path > 0 && a->bytes[0] == AS_SEQUENCE && a->bytes[1] < 255;
    unsigned i;

    add_number(b, AS_SEQUENCE, 1);
    add_number(b, joins ? a->bytes[1] + 1u : 1, 1);
    add_number(b, octets == 2 && own_as > 65535 ? AS_TRANS : own_as, octets);
    while ((head = take(&left, 2)) != NULL && (at = take(&left, head[1] * 4u)) != NULL) {
        if (!joins)
            buffer_add(b, head, 2);
        joins = 0;
        for (i = 0; i < head[1]; i++) {
            uint32_t as = number(at + 4 * i, 4);

            trans |= octets == 2 && as > 65535;
            add_number(b, octets == 2 && as > 65535 ? AS_TRANS : as, octets);
        }
    }
    return trans;
}

/* The other attributes. For a neighbour that knows two octets only, AGGREGATOR is said in two ways. */
static void add_others(struct buffer *b, const struct attributes *a, int four_octets)
{
    struct bytes left = { a->bytes + a->path, a->others };
    const unsigned char *head, *value;

    while ((head = take(&left, 2)) != NULL) {
        size_t wide = head[0] & EXTENDED ? 2 : 1, n = number(take(&left, wide), wide);

        value = take(&left, n);
        if (head[1] == AGGREGATOR && !four_octets) {
            unsigned char two[6];
            uint32_t as = number(value, 4), said = as > 65535 ? AS_TRANS : as;

            two[0] = (unsigned char)(said >> 8);
            two[1] = (unsigned char)said;
            memcpy(two + 2, value + 4, 4);
            add_attribute(b, head[0], AGGREGATOR, two, 6);
            if (as > 65535)
                add_attribute(b, OPTIONAL | TRANSITIVE, AS4_AGGREGATOR, value, 8);
        } else {
            add_attribute(b, head[0], head[1], value, n);
        }
    }
}

static void add_announcement(struct buffer *b, const struct prefix *p, const struct attributes *a, uint32_t own_as,
                             uint32_t own_address, int four_octets)
{
    size_t since = begin_message(b, UPDATE), list;
    struct buffer path = { 0 }, path4 = { 0 };
    uint32_t next_hop = htonl(own_address);
    int trans = add_path(&path, a, own_as, four_octets ? 4 : 2);

    add_number(b, 0, 2);
    list = begin(b, 2);
    add_attribute(b, TRANSITIVE, ORIGIN, &a->origin, 1);
    add_attribute(b, TRANSITIVE, AS_PATH, path.data, path.end);
    add_attribute(b, TRANSITIVE, NEXT_HOP, &next_hop, 4);
    add_others(b, a, four_octets);
    if (trans) {
        add_path(&path4, a, own_as, 4);
        add_attribute(b, OPTIONAL | TRANSITIVE, AS4_PATH, path4.data, path4.end);
    }
    free(path.data);
    free(path4.data);
    complete(b, list, 2);
    add_prefix(b, p);
    end_message(b, since);
}

/* ---- routes -------------------------------------------------------------------------------------------------- */

/* From whom a route is: the number of a neighbour, or -1: our own. */
struct route {
    struct prefix prefix;
    int from;
    struct attributes *attributes;
};

static int same_prefix(const struct prefix *a, const struct prefix *b)
{
    return a->address == b->address && a->length == b->length;
}

static uint32_t first_as(const struct attributes *a)
{
    return a->path >= 6 ? number(a->bytes + 2, 4) : 0;
}

/* Whether a is better than b (RFC 4271, section 9.1.2.2). Both are there. The same on both members, always. */
static int is_better(const struct route *a, const struct route *b, const uint32_t *addresses)
{
    const struct attributes *x = a->attributes, *y = b->attributes;
    size_t i = path_length(x->bytes, x->path), j = path_length(y->bytes, y->path);

    if (a->from < 0 || b->from < 0)
        return a->from < 0;
    if (i != j)
        return i < j;
    if (x->origin != y->origin)
        return x->origin < y->origin;
    /* MED counts among routes of one neighbouring AS. Those stand together, so that the order of all is one. */
    if (first_as(x) != first_as(y))
        return first_as(x) < first_as(y);
    if (x->med != y->med)
        return x->med < y->med;
    if (x->identifier != y->identifier)
        return x->identifier < y->identifier;
    return addresses[a->from] < addresses[b->from];
}

/* Whether this neighbour is told of a route that is the best one (NULL: there is none). */
static int is_told(const struct route *best, int neighbour, uint32_t as)
{
    return best != NULL && best->from != neighbour && !path_has(best->attributes->bytes, best->attributes->path, as);
}

static int same_attributes(const struct attributes *a, const struct attributes *b)
{
    return size_of(a) == size_of(b) && memcmp(a, b, size_of(a)) == 0;
}

/* ---- the state machine ---------------------------------------------------------------------------------------- */

/* Of a connection. Where a neighbour has none, RFC 4271 says Active (or Idle, until it is called again). */
enum state { NONE, CONNECT, OPEN_SENT, OPEN_CONFIRM, ESTABLISHED };

static const char *const names[] = { "Active", "Connect", "OpenSent", "OpenConfirm", "Established" };

/* What the process that takes over has to know of a connection: its checkpoint. */
struct session {
    uint8_t state, four_octets;
    uint16_t hold;              /* seconds, as agreed; 0: none */
    uint32_t identifier;
    uint16_t have;
    unsigned char in[LONGEST];  /* the part of a message that has come */
};

struct connection {
    int fd, outgoing;
    struct session session;
    struct buffer out;          /* what the kernel has not taken yet */
    int64_t hold_at, keepalive_at;
};

struct neighbour {
    uint32_t address, as;
    int port;                   /* 0: it is not called */
    struct connection connections[2];   /* the one that it has made, and ours */
    int64_t retry_at;
    int64_t stale_at;           /* then its routes go, if it has no session; 0: there are none, or it has */
};

/* Of a neighbour, under a key: from which port it was called last, and who has made the connection that has the session. */
enum maker { NOBODY, OURS, THEIRS };

struct call {
    uint16_t port;
    uint8_t maker;
};

static struct neighbour neighbours[NEIGHBOURS];
static uint32_t addresses[NEIGHBOURS];
static int neighbours_used;
static struct route routes[ROUTES];
static size_t routes_used;
static struct prefix own[OWN];
static size_t own_used;
static struct attributes own_attributes;
static uint32_t own_as, own_address, own_identifier;
static unsigned own_hold = 90;
static int own_port, listener = -1;
static volatile sig_atomic_t ending;

static void drop(struct neighbour *n, struct connection *c, const struct fault *f);

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static const char *text(uint32_t address)
{
    static char texts[4][INET_ADDRSTRLEN];
    static int next;
    struct in_addr a = { htonl(address) };

    next = (next + 1) % 4;
    return inet_ntop(AF_INET, &a, texts[next], sizeof texts[next]);
}

static void enter(struct neighbour *n, struct connection *c, enum state state)
{
    c->session.state = (uint8_t)state;
    fprintf(stderr, "bgp_speaker: %s: %s\n", text(n->address), names[state]);
}

static struct connection *established(struct neighbour *n)
{
    int i;

    for (i = 0; i < 2; i++)
        if (n->connections[i].session.state == ESTABLISHED)
            return &n->connections[i];
    return NULL;
}

/* What tcpr does not take cannot be kept: then the session must not go on either. */
static void must(int result, struct neighbour *n)
{
    static const struct fault full = { CEASE, NO_RESOURCES, { 0 }, 0 };
    int i;

    /* EROFS: this machine is the master no longer, and the session is the partner's. */
    if (result == 0 || errno == EROFS)
        return;
    fprintf(stderr, "bgp_speaker: %s: %s\n", text(n->address), tcpr_strerror());
    for (i = 0; i < 2; i++)
        if (n->connections[i].fd >= 0)
            drop(n, &n->connections[i], &full);
}

/* ---- telling neighbours of routes ---- */

static const struct route *best_route(const struct prefix *p)
{
    const struct route *best = NULL;
    size_t i;

    for (i = 0; i < routes_used; i++)
        if (same_prefix(&routes[i].prefix, p) && (best == NULL || is_better(&routes[i], best, addresses)))
            best = &routes[i];
    return best;
}

static void announce(struct connection *c, const struct route *r)
{
    add_announcement(&c->out, &r->prefix, r->attributes, own_as, own_address, c->session.four_octets);
}

/* The best route to a prefix was `before`, and may be another one now. */
static void tell(const struct prefix *p, const struct route *before)
{
    const struct route *best = best_route(p);
    int i;

    for (i = 0; i < neighbours_used; i++) {
        struct connection *c = established(&neighbours[i]);
        int was = is_told(before, i, neighbours[i].as), is = is_told(best, i, neighbours[i].as);

        if (c == NULL)
            continue;
        if (is && !(was && same_attributes(before->attributes, best->attributes)))
            announce(c, best);
        else if (was && !is)
            add_withdrawal(&c->out, p);
    }
}

static void tell_all(int neighbour, struct connection *c)
{
    size_t i;

    for (i = 0; i < routes_used; i++)
        if (best_route(&routes[i].prefix) == &routes[i] && is_told(&routes[i], neighbour, neighbours[neighbour].as))
            announce(c, &routes[i]);
}

/* ---- routes, and the keys where they are kept ---- */

struct key {
    unsigned char kind;         /* 'r': a route */
    unsigned char neighbour[4], address[4], length;
};

static struct key key_of(char kind, uint32_t neighbour, const struct prefix *p)
{
    struct key k = { .kind = (unsigned char)kind };
    uint32_t from = htonl(neighbour), to = htonl(p->address);

    memcpy(k.neighbour, &from, 4);
    memcpy(k.address, &to, 4);
    k.length = (unsigned char)p->length;
    return k;
}

/* A neighbour (or -1: ourselves) has this route to a prefix from now on; or none, if attributes is NULL. */
/* A key is no more. Where a turn has no room for so many, it may end here: a key without its session means nothing. */
static int give_up(const struct key *k)
{
    int r = tcpr_delete(k, sizeof *k);

    if (r < 0 && errno == ENOBUFS && tcpr_commit() == 0)
        r = tcpr_delete(k, sizeof *k);
    return r < 0 && errno != ENOENT ? -1 : 0;
}

static void set_route(int from, const struct prefix *p, const struct attributes *a)
{
    struct attributes *copy = NULL, *old = NULL;
    const struct route *best = best_route(p);
    struct route before = { 0 };
    int changes;
    size_t i;

    if (best != NULL)
        before = *best;
    for (i = 0; i < routes_used && !(routes[i].from == from && same_prefix(&routes[i].prefix, p)); i++)
        ;
    if (a != NULL) {
        if (i == ROUTES || (copy = malloc(size_of(a))) == NULL) {
            errno = ENOMEM;
            if (from >= 0)
                must(-1, &neighbours[from]);
            return;
        }
        memcpy(copy, a, size_of(a));
    }
    if (i < routes_used)
        old = routes[i].attributes;
    if (copy != NULL && old != NULL && same_attributes(copy, old)) {
        free(copy);             /* said again: there is nothing to keep or to tell */
        return;
    }
    if (copy != NULL) {
        routes[i] = (struct route){ *p, from, copy };
        routes_used += i == routes_used;
    } else if (old != NULL) {
        routes[i] = routes[--routes_used];
    }
    tell(p, best != NULL ? &before : NULL);
    changes = copy != NULL || old != NULL;
    free(old);
    if (from >= 0 && changes) {
        struct key k = key_of('r', neighbours[from].address, p);

        if (copy != NULL)
            must(tcpr_put(&k, sizeof k, copy, size_of(copy)), &neighbours[from]);
        else if (give_up(&k) < 0)
            must(-1, &neighbours[from]);
    }
}

static void forget_routes(int from)
{
    size_t i;

    neighbours[from].stale_at = 0;
    for (i = routes_used; i-- > 0;)
        if (i < routes_used && routes[i].from == from) {
            struct prefix p = routes[i].prefix;

            set_route(from, &p, NULL);
        }
}

static struct key call_key(const struct neighbour *n)
{
    struct prefix none = { 0, 0 };

    return key_of('n', n->address, &none);
}

static struct call last_call(const struct neighbour *n)
{
    struct call call = { 0, 0 };
    struct key k = call_key(n);

    if (tcpr_get(&k, sizeof k, &call, sizeof call) < 0 && errno != ENOENT)
        fprintf(stderr, "bgp_speaker: tcpr_get: %s\n", tcpr_strerror());
    return call;
}

static int note_call(const struct neighbour *n, uint16_t port, enum maker maker)
{
    struct call call;
    struct key k = call_key(n);

    memset(&call, 0, sizeof call);
    call.port = port;
    call.maker = (uint8_t)maker;
    return tcpr_put(&k, sizeof k, &call, sizeof call);
}

/* What an earlier process has put. */
static void load_routes(void)
{
    struct key k;
    ssize_t n = 0;
    int i;

    while ((n = tcpr_iterate(&k, (size_t)n, &k, sizeof k)) > 0 && n == (ssize_t)sizeof k) {
        struct attributes a;
        struct prefix p;

        if (k.kind != 'r' || tcpr_get(&k, sizeof k, &a, sizeof a) < (ssize_t)offsetof(struct attributes, bytes))
            continue;
        p.address = number(k.address, 4);
        p.length = k.length;
        for (i = 0; i < neighbours_used && neighbours[i].address != number(k.neighbour, 4); i++)
            ;
        if (i == neighbours_used || routes_used == ROUTES)
            continue;
        if ((routes[routes_used].attributes = malloc(size_of(&a))) == NULL)
            die("malloc");
        memcpy(routes[routes_used].attributes, &a, size_of(&a));
        routes[routes_used].prefix = p;
        routes[routes_used++].from = i;
        neighbours[i].stale_at = now_ms() + own_hold * 1000;
    }
    if (n < 0)
        fprintf(stderr, "bgp_speaker: tcpr_iterate: %s\n", tcpr_strerror());
}

/* ---- connections ---- */

/* Sends what there is to send, as far as the kernel takes it. */
static void flush(struct neighbour *n, struct connection *c)
{
    while (c->fd >= 0 && buffer_len(&c->out) > 0) {
        ssize_t sent = tcpr_send(c->fd, c->out.data + c->out.start, buffer_len(&c->out), MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent > 0)
            buffer_drop(&c->out, (size_t)sent);
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            drop(n, c, NULL);
    }
    if (c->fd >= 0 && buffer_len(&c->out) > BACKLOG)
        drop(n, c, NULL);
}

static void flush_all(void)
{
    int again, i, j;

    /* A connection that is dropped has others told of it. */
    do {
        again = 0;
        for (i = 0; i < neighbours_used; i++)
            for (j = 0; j < 2; j++) {
                struct connection *c = &neighbours[i].connections[j];
                int before = c->fd;

                if (c->session.state > CONNECT)
                    flush(&neighbours[i], c);
                again |= before != c->fd;
            }
    } while (again);
}

static void close_connection(struct connection *c)
{
    int outgoing = c->outgoing;

    if (c->fd >= 0)
        tcpr_close(c->fd);
    free(c->out.data);
    memset(c, 0, sizeof *c);
    c->fd = -1;
    c->outgoing = outgoing;
}

/* The end of a connection, with a NOTIFICATION or (NULL) without. If it had the session, the neighbour's routes go. */
static void drop(struct neighbour *n, struct connection *c, const struct fault *f)
{
    int had = c->session.state == ESTABLISHED, state = c->session.state;

    fprintf(stderr, "bgp_speaker: %s: down (%s)", text(n->address), names[state]);
    if (f != NULL)
        fprintf(stderr, ": NOTIFICATION %u/%u", f->code, f->subcode);
    fputc('\n', stderr);
    if (f != NULL && state > CONNECT) {
        add_notification(&c->out, f);
        /* What the kernel does not take at once is lost, as with a neighbour that is gone. */
        if (tcpr_send(c->fd, c->out.data + c->out.start, buffer_len(&c->out), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            tcpr_shutdown(c->fd, SHUT_WR);
    }
    close_connection(c);
    n->retry_at = now_ms() + RETRY * 1000;
    if (had) {
        forget_routes((int)(n - neighbours));
        must(note_call(n, last_call(n).port, NOBODY), n);
    }
}

static void keep(struct neighbour *n, struct connection *c)
{
    /* ENOTCONN: it has just been reset, and will be found so. */
    if (c->session.state > CONNECT && tcpr_checkpoint(c->fd, &c->session, offsetof(struct session, in) + c->session.have) < 0 &&
        errno != ENOTCONN)
        must(-1, n);
}

static void start_timers(struct connection *c)
{
    int64_t hold = c->session.state == OPEN_SENT ? OPEN_WAIT : c->session.hold;

    c->hold_at = hold == 0 ? INT64_MAX : now_ms() + hold * 1000;
    c->keepalive_at = c->session.state == OPEN_SENT || hold == 0 ? INT64_MAX : now_ms() + hold * 1000 / 3;
}

/* A TCP connection is there. A recovered one goes on where its checkpoint says. */
static void begin_session(struct neighbour *n, struct connection *c)
{
    static struct session s;
    ssize_t size = tcpr_restore(c->fd, &s, sizeof s);
    int one = 1;

    if (size < 0 && errno == ENODATA) {
        enter(n, c, OPEN_SENT);
        add_open(&c->out, own_as, own_hold, own_identifier);
    } else if (size < (ssize_t)offsetof(struct session, in) || size != (ssize_t)offsetof(struct session, in) + s.have ||
               s.have >= LONGEST || s.state > ESTABLISHED) {
        drop(n, c, NULL);       /* the connection is over, or the checkpoint is of another version of this program */
        return;
    } else {
        c->session = s;
        enter(n, c, s.state);
        if (c->session.state == ESTABLISHED)
            n->stale_at = 0;
        if (c->session.state > OPEN_SENT)
            add_keepalive(&c->out);
    }
    tcpr_setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    start_timers(c);
    flush(n, c);
    if (c->fd >= 0)
        keep(n, c);
}

/* Calls a neighbour. tcpr gives a connection back to whoever connects to where it leads, and in a program of many connections knows
 * it by its local port. So each call is made from a port that is known afterwards (and outside those that the kernel gives out),
 * and not from the one of the last call, which may yet be in use by a connection that has just ended. */
static void call(struct neighbour *n, uint16_t port)
{
    struct connection *c = &n->connections[1];
    struct sockaddr_in from = { .sin_family = AF_INET }, to = from;
    int one = 1;

    from.sin_addr.s_addr = htonl(own_address);
    from.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(n->address);
    to.sin_port = htons((uint16_t)n->port);
    n->retry_at = now_ms() + RETRY * 1000;
    c->fd = tcpr_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return;
    enter(n, c, CONNECT);
    tcpr_setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (tcpr_bind(c->fd, (struct sockaddr *)&from, sizeof from) < 0 ||
        (tcpr_connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)) {
        fprintf(stderr, "bgp_speaker: %s: connect: %s\n", text(n->address), strerror(errno));
        close_connection(c);
        return;
    }
    c->hold_at = now_ms() + 10000;
    c->keepalive_at = INT64_MAX;
}

static uint16_t first_port(const struct neighbour *n)
{
    return (uint16_t)(FIRST_CALL_PORT + (n - neighbours) * CALL_PORTS);
}

static void call_again(struct neighbour *n)
{
    uint16_t first = first_port(n), last = last_call(n).port;
    uint16_t next = last < first || last >= first + CALL_PORTS - 1 ? first : (uint16_t)(last + 1);

    /* A connection that could not be called back is not made. */
    if (note_call(n, next, NOBODY) == 0)
        call(n, next);
    else
        fprintf(stderr, "bgp_speaker: tcpr_put: %s\n", tcpr_strerror());
}

static void connected(struct neighbour *n, struct connection *c)
{
    int error = 0;
    socklen_t size = sizeof error;

    if (tcpr_getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error != 0) {
        close_connection(c);
        n->retry_at = now_ms() + RETRY * 1000;
        return;
    }
    begin_session(n, c);
}

/* ---- messages that have come ---- */

/* Two connections with one neighbour: one of them goes (RFC 4271, section 6.8; RFC 6286). Returns whether this one stays. */
static int survives_collision(struct neighbour *n, struct connection *c)
{
    static const struct fault collision = { CEASE, COLLISION, { 0 }, 0 };
    struct connection *other = &n->connections[!c->outgoing];
    uint32_t theirs = c->session.identifier;
    int ours_wins = own_identifier != theirs ? own_identifier > theirs : own_as > n->as;

    if (other->session.state == ESTABLISHED || (other->session.state == OPEN_CONFIRM && ours_wins != c->outgoing)) {
        drop(n, c, &collision);
        return 0;
    }
    if (other->session.state == OPEN_CONFIRM)
        drop(n, other, &collision);
    return 1;
}

static int hear_open(struct neighbour *n, struct connection *c, struct bytes body, struct fault *f)
{
    struct opening o;

    if (read_open(body, n->as, &o, f) < 0)
        return -1;
    c->session.hold = (uint16_t)(o.hold < own_hold ? o.hold : own_hold);
    c->session.four_octets = (uint8_t)o.four_octets;
    c->session.identifier = o.identifier;
    if (!survives_collision(n, c))
        return 0;
    enter(n, c, OPEN_CONFIRM);
    add_keepalive(&c->out);
    start_timers(c);
    return 0;
}

static void hear_confirmation(struct neighbour *n, struct connection *c)
{
    int i = (int)(n - neighbours);

    /* Routes that are left of a session that has not come back. */
    forget_routes(i);
    enter(n, c, ESTABLISHED);
    must(note_call(n, last_call(n).port, c->outgoing ? OURS : THEIRS), n);
    if (c->fd >= 0)
        tell_all(i, c);
}

static int hear_update(struct neighbour *n, struct connection *c, struct bytes body, struct fault *f)
{
    struct sender from = { n->as, c->session.identifier, c->session.four_octets };
    static struct update u;
    struct prefix p;
    int i = (int)(n - neighbours);

    if (read_update(body, &from, own_as, own_address, &u, f) < 0)
        return -1;
    while (u.withdrawn.n > 0 && c->session.state == ESTABLISHED && read_prefix(&u.withdrawn, &p, f) == 0)
        set_route(i, &p, NULL);
    while (u.announced.n > 0 && c->session.state == ESTABLISHED && read_prefix(&u.announced, &p, f) == 0)
        set_route(i, &p, u.usable ? &u.attributes : NULL);
    return 0;
}

/* One message. -1: something is wrong with it. */
static int hear_message(struct neighbour *n, struct connection *c, const unsigned char *message, size_t length, struct fault *f)
{
    enum message type = message[18];
    struct bytes body = { message + HEADER, length - HEADER };

    if (type == NOTIFICATION) {
        fprintf(stderr, "bgp_speaker: %s says NOTIFICATION %u/%u\n", text(n->address), body.at[0], body.at[1]);
        drop(n, c, NULL);
        return 0;
    }
    switch (c->session.state) {
    case OPEN_SENT:
        if (type == OPEN)
            return hear_open(n, c, body, f);
        break;
    case OPEN_CONFIRM:
        if (type == KEEPALIVE) {
            hear_confirmation(n, c);
            return 0;
        }
        break;
    case ESTABLISHED:
        if (type == KEEPALIVE)
            return 0;
        if (type == UPDATE)
            return hear_update(n, c, body, f);
        break;
    }
    /* The subcodes are those of RFC 6608, and the data is the type. */
    return wrong(f, FSM_ERROR, (unsigned)c->session.state - OPEN_SENT + 1, message + 18, 1);
}

/* Reads once, deals with all that has come whole, and makes the checkpoint: one turn. */
static void hear(struct neighbour *n, struct connection *c)
{
    struct session *s = &c->session;
    struct fault f = { 0 };
    size_t at = 0;
    int length = 0;
    ssize_t got = tcpr_recv(c->fd, s->in + s->have, sizeof s->in - s->have, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        drop(n, c, NULL);
        return;
    }
    s->have = (uint16_t)(s->have + got);
    while (c->fd >= 0 && at < s->have && (length = read_header(s->in + at, s->have - at, &f)) > 0) {
        if (s->state > OPEN_SENT)
            c->hold_at = s->hold == 0 ? INT64_MAX : now_ms() + s->hold * 1000;
        if (hear_message(n, c, s->in + at, (size_t)length, &f) < 0) {
            length = -1;
            break;
        }
        at += (size_t)length;
    }
    if (c->fd >= 0 && length < 0)
        drop(n, c, &f);
    if (c->fd >= 0) {
        s->have = (uint16_t)(s->have - at);
        memmove(s->in, s->in + at, s->have);
    }
    flush_all();
    if (c->fd >= 0)
        keep(n, c);
}

/* ---- the loop ------------------------------------------------------------------------------------------------- */

static void welcome(void)
{
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    int i, fd;

    while ((fd = tcpr_accept4(listener, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        for (i = 0; i < neighbours_used && neighbours[i].address != ntohl(from.sin_addr.s_addr); i++)
            ;
        if (i == neighbours_used || neighbours[i].connections[0].fd >= 0) {
            fprintf(stderr, "bgp_speaker: %s is turned away\n", text(ntohl(from.sin_addr.s_addr)));
            tcpr_close(fd);
        } else {
            neighbours[i].connections[0].fd = fd;
            begin_session(&neighbours[i], &neighbours[i].connections[0]);
        }
        size = sizeof from;
    }
}

/* What is due by the clock. Returns when to look again. */
static int64_t clockwork(int64_t now)
{
    static const struct fault expired = { HOLD_TIMER_EXPIRED, 0, { 0 }, 0 };
    int64_t next = now + 1000;
    int i, j;

    for (i = 0; i < neighbours_used; i++) {
        struct neighbour *n = &neighbours[i];

        for (j = 0; j < 2; j++) {
            struct connection *c = &n->connections[j];

            if (c->fd < 0)
                continue;
            if (now >= c->hold_at) {
                drop(n, c, &expired);
                continue;
            }
            if (now >= c->keepalive_at) {
                add_keepalive(&c->out);
                c->keepalive_at = now + c->session.hold * 1000 / 3;
            }
            next = c->hold_at < next ? c->hold_at : next;
            next = c->keepalive_at < next ? c->keepalive_at : next;
        }
        if (n->stale_at != 0 && now >= n->stale_at)
            forget_routes(i);
        if (n->port != 0 && n->connections[0].fd < 0 && n->connections[1].fd < 0 && now >= n->retry_at)
            call_again(n);
    }
    flush_all();
    return next;
}

static void setup(void)
{
    struct sockaddr_storage at = { 0 };
    struct sockaddr_in *four = (struct sockaddr_in *)&at;
    size_t k;
    int i;

    load_routes();
    for (k = 0; k < own_used; k++)
        set_route(-1, &own[k], &own_attributes);
    four->sin_family = AF_INET;
    four->sin_port = htons((uint16_t)own_port);
    four->sin_addr.s_addr = htonl(own_address);
    listener = tcpr_listen_on(&at, sizeof *four);
    for (i = 0; i < neighbours_used; i++) {
        struct neighbour *n = &neighbours[i];
        struct call last = last_call(n);

        /* A session on a connection that the neighbour has made comes out of the listener. One on a connection of ours is
         * called for, and so is a connection that has no session yet. */
        n->retry_at = now_ms() + (last.maker == THEIRS ? own_hold * 1000 : 0);
        if (n->port != 0 && last.port != 0 && last.maker != THEIRS)
            call(n, last.port);
    }
}

/* This machine is the master no longer: all that this process has is the partner's. */
static void teardown(void)
{
    int i, j;

    for (i = 0; i < neighbours_used; i++)
        for (j = 0; j < 2; j++)
            close_connection(&neighbours[i].connections[j]);
    for (i = 0; i < neighbours_used; i++)
        neighbours[i].stale_at = 0;
    while (routes_used > 0)
        free(routes[--routes_used].attributes);
    tcpr_close(listener);
}

/* Waits for something to do, and does it. */
static void turn(void)
{
    struct pollfd polled[1 + 2 * NEIGHBOURS];
    int64_t now = now_ms(), until = clockwork(now);
    nfds_t used = 1;
    int i;

    polled[0] = (struct pollfd){ listener, POLLIN, 0 };
    for (i = 0; i < 2 * neighbours_used; i++) {
        struct connection *c = &neighbours[i / 2].connections[i % 2];
        short wants = c->session.state == CONNECT ? POLLOUT : POLLIN;

        if (buffer_len(&c->out) > 0)
            wants |= POLLOUT;
        polled[used++] = (struct pollfd){ c->fd, wants, 0 };
    }
    if (tcpr_poll(polled, used, until > now ? (int)(until - now) : 0) < 0) {
        if (errno != EINTR)
            die("poll");
        return;
    }
    if (polled[0].revents != 0)
        welcome();
    for (i = 0; i < 2 * neighbours_used; i++) {
        struct neighbour *n = &neighbours[i / 2];
        struct connection *c = &n->connections[i % 2];

        if (polled[1 + i].revents == 0 || c->fd != polled[1 + i].fd)
            continue;
        if (c->session.state == CONNECT) {
            connected(n, c);
            continue;
        }
        if (polled[1 + i].revents & POLLOUT)
            flush(n, c);
        if (c->fd >= 0 && (polled[1 + i].revents & ~POLLOUT))
            hear(n, c);
    }
}

static int serves(void)
{
    int role = tcpr_get_role();

    return role == TCPR_ROLE_MASTER || role == TCPR_ROLE_FENCED;
}

static void end(int signal)
{
    (void)signal;
    ending = 1;
}

static void usage(const char *what)
{
    fprintf(stderr, "bgp_speaker: %s\nusage: bgp_speaker ADDRESS PORT AS ROUTER-ID [hold=SECONDS] [announce=PREFIX/LENGTH]... "
            "ADDRESS[:PORT]=AS...\n", what);
    exit(2);
}

static uint32_t parse_four(const char *text)
{
    struct in_addr a;

    if (inet_pton(AF_INET, text, &a) != 1)
        usage(text);
    return ntohl(a.s_addr);
}

static uint32_t parse_number(const char *text, uint32_t least, uint32_t most)
{
    char *after;
    unsigned long long n = strtoull(text, &after, 10);

    if (*text < '0' || *text > '9' || *after != 0 || n < least || n > most)
        usage(text);
    return (uint32_t)n;
}

static void parse(char *argument)
{
    char *equals = strchr(argument, '='), *value = equals + 1, *after;
    struct neighbour *n = &neighbours[neighbours_used];

    if (equals == NULL)
        usage(argument);
    *equals = 0;
    if (strcmp(argument, "hold") == 0) {
        own_hold = parse_number(value, 3, 65535);
    } else if (strcmp(argument, "announce") == 0) {
        if ((after = strchr(value, '/')) == NULL || own_used == OWN)
            usage(value);
        *after++ = 0;
        own[own_used].length = parse_number(after, 0, 32);
        own[own_used++].address = parse_four(value);
    } else {
        if (neighbours_used == NEIGHBOURS)
            usage(argument);
        if ((after = strchr(argument, ':')) != NULL) {
            *after++ = 0;
            n->port = (int)parse_number(after, 1, 65535);
        }
        n->address = addresses[neighbours_used++] = parse_four(argument);
        n->as = parse_number(value, 1, UINT32_MAX);
        if (n->as == own_as)
            usage("a neighbour has an AS of its own");
        n->connections[0].fd = n->connections[1].fd = -1;
        n->connections[1].outgoing = 1;
    }
}

int main(int argc, char **argv)
{
    static const struct fault leaving = { CEASE, SHUTDOWN, { 0 }, 0 };
    struct sigaction action = { .sa_handler = end };
    int i;

    if (argc < 6)
        usage("too few arguments");
    own_address = parse_four(argv[1]);
    own_port = (int)parse_number(argv[2], 1, 65535);
    own_as = parse_number(argv[3], 1, UINT32_MAX);
    own_identifier = parse_four(argv[4]);
    for (i = 5; i < argc; i++)
        parse(argv[i]);
    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGTERM, &action, NULL);
    if (tcpr_init(NULL) < 0)
        die("tcpr_init");
    while (!ending) {
        if (tcpr_wait_role(TCPR_ROLE_MASTER, 1000) < 0) {
            if (errno != ETIMEDOUT && errno != EINTR)
                die("tcpr_wait_role");
            continue;
        }
        setup();
        while (!ending && serves())
            turn();
        if (!ending)
            teardown();
    }
    for (i = 0; i < 2 * neighbours_used; i++)
        if (neighbours[i / 2].connections[i % 2].fd >= 0)
            drop(&neighbours[i / 2], &neighbours[i / 2].connections[i % 2], &leaving);
    return 0;
}
