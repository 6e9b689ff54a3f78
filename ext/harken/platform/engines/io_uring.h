/* The engine "io_uring", for Linux 6.15 and newer: waits as accept4.h does, and takes a batch with one request
 * instead of one accept4() a connection. The contract is in engine.h.
 *
 * The request is a multishot accept that may not wait (DONTWAIT): it takes what is queued, and is over when nothing is
 * left, or when the completion ring has no room for another one. Nothing stays in flight, so no connection is taken out
 * of the kernel's queue that nobody asked for. The room is how a batch is limited:
 *
 *   - A request that finds no room has one connection in its hand already, so the room for `n` is n - 1. The result of
 *     that one is written when all requests of the call were made. So two more requests make room for it: one writes
 *     the head of the ring, one further, into an eventfd, and one reads it from there into the ring. They leave no
 *     completions. Without them the kernel would keep the last one aside until a second call fetches it; and if that
 *     call failed (a filter came between, no memory), a connection that the kernel has accepted would have a number
 *     that nobody knows.
 *   - The kernel may use all room that it was ever given. What is too much for the next batch is used up before, by
 *     requests that do nothing.
 *
 * Where a kernel does not do the two at once, or stops between the requests of a call, the second call it is. If that
 * fails it is made again, by each take() until it succeeds: the ring is not closed before.
 *
 * One request for each connection would need none of this, and costs more. For 2000 connections in batches of 64, in
 * processor time of a loop of accept4(): this 0.79, single requests 0.86, and single requests linked, so that the first
 * failure ends them, 0.98.
 *
 * Linux 6.10 to 6.14 know the flags, too, but could lose the one that found no room. IORING_FEAT_NO_IOWAIT came with
 * 6.15, and tells them apart. On top of that the first open() of a process tries it all, on a socket of its own. What
 * the kernel has not or forbids (seccomp, kernel.io_uring_disabled) makes open() fail. If it is forbidden later, the
 * ring is given up, and accept4() goes on.
 *
 * Any thread may call take(), so this is no ring for a single issuer (IORING_SETUP_SINGLE_ISSUER); as nothing completes
 * later, there is no deferred work to save either.
 *
 * The numbers and structs are the kernel's; its headers may be older than the kernel that the program meets. */
#ifndef HARKEN_ENGINE_IO_URING_H
#define HARKEN_ENGINE_IO_URING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#if !defined(SYS_io_uring_setup) && (defined(__x86_64__) && defined(__LP64__) || defined(__aarch64__))
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#endif

#ifdef SYS_io_uring_setup
#define NET_URING 1

enum {
    NET_URING_CQSIZE = 1u << 3,       /* IORING_SETUP_: we say how long the completion ring is */
    NET_URING_NO_SQARRAY = 1u << 16,  /* IORING_SETUP_: requests are taken in order */
    NET_URING_SINGLE_MMAP = 1u << 0,  /* IORING_FEAT_ */
    NET_URING_NO_IOWAIT = 1u << 17,   /* IORING_FEAT_ */
    NET_URING_GETEVENTS = 1u << 0,    /* IORING_ENTER_ */
    NET_URING_NOP = 0,                /* IORING_OP_ */
    NET_URING_ACCEPT = 13,            /* IORING_OP_ */
    NET_URING_READ = 22,              /* IORING_OP_ */
    NET_URING_WRITE = 23,             /* IORING_OP_ */
    NET_URING_SILENT = 1u << 6,       /* IOSQE_: no completion of a success */
    NET_URING_MULTISHOT = 1u << 0,    /* IORING_ACCEPT_ */
    NET_URING_DONTWAIT = 1u << 1,     /* IORING_ACCEPT_ */
    NET_URING_MORE = 1u << 1,         /* IORING_CQE_F_: the request goes on */
    NET_URING_SQES_AT = 0x10000000,   /* IORING_OFF_SQES */
    NET_URING_REQUESTS = 32,          /* our size of the submission ring: a page */
    NET_URING_MOST = 128,             /* our size of the completion ring: as much as one request takes */
    NET_URING_RELAYED = 1,            /* names the completions that are no connections, if there are any */
    NET_URING_TRIES = 64,             /* for what the kernel keeps aside, in one take() */
    NET_URING_PATIENCE = 1000         /* so many take() in a row may fail to get it */
};

typedef struct {
    uint32_t head, tail, mask, entries, flags, dropped_or_overflow, array_or_cqes, reserved;
    uint64_t address;
} net_uring_offsets_t;

typedef struct {
    uint32_t sq_entries, cq_entries, flags, thread_cpu, thread_idle, features, wq_fd, reserved[3];
    net_uring_offsets_t sq;
    struct {
        uint32_t head, tail, mask, entries, overflow, cqes, flags, reserved;
        uint64_t address;
    } cq;
} net_uring_params_t;

typedef struct {
    uint8_t opcode, flags;
    uint16_t priority; /* of accept: what follows IORING_ACCEPT_ */
    int32_t fd;
    uint64_t offset, address;
    uint32_t length, accept_flags;
    uint64_t user_data;
    uint64_t unused[3];
} net_uring_request_t;

typedef struct {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
} net_uring_completion_t;

typedef struct {
    net_epoll_t epoll;
    int ring; /* -1: given up, accept4() does it */
    void *rings;
    size_t rings_size;
    net_uring_request_t *requests; /* the submission ring */
    net_uring_completion_t *completions;
    uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail; /* shared with the kernel */
    uint32_t sq_mask, cq_mask, cq_entries;
    uint32_t next; /* the completion that we read next; all others were */
    int relay;     /* the eventfd; -1: there is none, and a full batch is two calls */
    uint32_t *mended, words[2]; /* where the eight bytes from the eventfd go, and what they are */
    int at_head;   /* which of the two words is the head */
    int owed;      /* 1 + index of the listener whose last connection the kernel keeps aside; 0: none */
    int patience;
    int late;      /* the head was not in the ring when the call came back: not what we think */
    int fetched;   /* a second call was needed */
    unsigned char *ends; /* owned, one a listener: the kernel sees the end of the queue, without an attempt in vain */
} net_uring_t;

static long net_uring_proven; /* 1: this kernel does what we think; 2: but a full batch takes two calls */

static inline void net_uring_give_up(net_uring_t *self)
{
    if (self->requests != NULL)
        munmap(self->requests, (self->sq_mask + 1) * sizeof *self->requests);
    if (self->rings != NULL)
        munmap(self->rings, self->rings_size);
    if (self->ring >= 0)
        close(self->ring);
    if (self->relay >= 0)
        close(self->relay);
    self->requests = NULL;
    self->rings = NULL;
    self->ring = self->relay = -1;
}

/* The eight bytes: the head, and what stands before it, which is the end of our requests and has that value already, or
 * what stands after it, if that is nothing. */
static inline void net_uring_make_relay(net_uring_t *self, const net_uring_params_t *params)
{
    const uint32_t *known = &params->sq.head, *end = &params->sq.reserved;
    uint32_t after = params->cq.head + (uint32_t)sizeof(uint32_t);
    int used = 0;
    for (; known < end; known++)
        used |= *known == after;
    for (known = &params->cq.head, end = &params->cq.reserved; known < end; known++)
        used |= *known == after;
    self->at_head = params->sq.tail + sizeof(uint32_t) == params->cq.head;
    self->mended = self->at_head ? self->sq_tail : self->cq_head;
    if ((self->at_head || !used) && net_get(&net_uring_proven) != 2)
        self->relay = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* without one it takes two calls */
}

static inline int net_uring_setup(net_uring_t *self)
{
    net_uring_params_t params;
    char *rings;
    void *requests;
    memset(&params, 0, sizeof params);
    params.flags = NET_URING_CQSIZE | NET_URING_NO_SQARRAY;
    params.cq_entries = NET_URING_MOST;
    self->ring = (int)syscall(SYS_io_uring_setup, NET_URING_REQUESTS, &params); /* close-on-exec from birth */
    if (self->ring < 0)
        return errno == EINVAL ? NET_ENOTSUP : errno;
    if (!(params.features & NET_URING_SINGLE_MMAP) || !(params.features & NET_URING_NO_IOWAIT))
        return NET_ENOTSUP;
    self->sq_mask = params.sq_entries - 1;
    self->cq_entries = params.cq_entries;
    self->cq_mask = params.cq_entries - 1;
    self->rings_size = params.cq.cqes + params.cq_entries * sizeof *self->completions;
    rings = (char *)mmap(NULL, self->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self->ring, 0);
    if (rings == (char *)MAP_FAILED)
        return errno;
    self->rings = rings;
    requests = mmap(NULL, params.sq_entries * sizeof *self->requests, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, self->ring, NET_URING_SQES_AT);
    if (requests == MAP_FAILED)
        return errno;
    self->requests = (net_uring_request_t *)requests;
    self->completions = (net_uring_completion_t *)(void *)(rings + params.cq.cqes);
    self->sq_head = (uint32_t *)(void *)(rings + params.sq.head);
    self->sq_tail = (uint32_t *)(void *)(rings + params.sq.tail);
    self->cq_head = (uint32_t *)(void *)(rings + params.cq.head);
    self->cq_tail = (uint32_t *)(void *)(rings + params.cq.tail);
    /* No room yet: the kernel looks when the first request is over. */
    __atomic_store_n(self->cq_head, 0u - self->cq_entries, __ATOMIC_RELEASE);
    net_uring_make_relay(self, &params);
    return 0;
}

/* Errors that say nothing about the next call. */
static inline int net_uring_passing(int error)
{
    return error == EAGAIN || error == EBUSY || error == ENOMEM || error == EBADR || error == EINTR;
}

static inline int net_uring_enter(net_uring_t *self, unsigned requests, unsigned completions)
{
    int tries = NET_URING_TRIES;
    for (;;) {
        if (syscall(SYS_io_uring_enter, self->ring, requests, completions, completions ? NET_URING_GETEVENTS : 0u, NULL,
                    0) >= 0)
            return 0;
        if (errno != EINTR || --tries == 0)
            return errno;
    }
}

/* `count` requests, at most NET_URING_REQUESTS. `*made`: how many the kernel has taken; the others are taken back. */
static inline int net_uring_submit(net_uring_t *self, const net_uring_request_t *requests, unsigned count,
                                   unsigned *made)
{
    uint32_t tail = *self->sq_tail, n;
    int error;
    for (n = 0; n < count; n++)
        self->requests[(tail + n) & self->sq_mask] = requests[n];
    __atomic_store_n(self->sq_tail, tail + count, __ATOMIC_RELEASE);
    error = net_uring_enter(self, count, 0);
    *made = __atomic_load_n(self->sq_head, __ATOMIC_ACQUIRE) - tail;
    __atomic_store_n(self->sq_tail, tail + *made, __ATOMIC_RELEASE);
    return *made == count ? 0 : error ? error : ENOMEM;
}

/* How many more completions the kernel can write. */
static inline uint32_t net_uring_room(const net_uring_t *self)
{
    return *self->cq_head + self->cq_entries - self->next;
}

/* More room: the kernel takes what is before the head as read. */
static inline void net_uring_grant(net_uring_t *self, uint32_t room)
{
    if (room > net_uring_room(self))
        __atomic_store_n(self->cq_head, self->next + room - self->cq_entries, __ATOMIC_RELEASE);
}

static inline int net_uring_next(net_uring_t *self, net_uring_completion_t *completion)
{
    if (self->next == __atomic_load_n(self->cq_tail, __ATOMIC_ACQUIRE))
        return 0;
    *completion = self->completions[self->next++ & self->cq_mask];
    return 1;
}

/* Less room. */
static inline int net_uring_use_up(net_uring_t *self, uint32_t room)
{
    net_uring_request_t nothing[NET_URING_REQUESTS];
    net_uring_completion_t completion;
    int error = 0;
    unsigned made;
    if (net_uring_room(self) <= room)
        return 0;
    memset(nothing, 0, sizeof nothing); /* NET_URING_NOP */
    while (error == 0 && net_uring_room(self) > room) {
        uint32_t before = self->next, times = net_uring_room(self) - room;
        error = net_uring_submit(self, nothing, times < NET_URING_REQUESTS ? times : NET_URING_REQUESTS, &made);
        while (net_uring_next(self, &completion)) {
        }
        if (error == 0 && self->next == before)
            error = NET_ENOTSUP;
    }
    return error;
}

/* What accept has come to so far: 1 when the request is over. */
static inline int net_uring_read(net_uring_t *self, int want, int *taken, int *got, int *error)
{
    net_uring_completion_t completion;
    int over = 0;
    while (net_uring_next(self, &completion)) {
        if (completion.user_data == NET_URING_RELAYED)
            continue;
        over |= !(completion.flags & NET_URING_MORE);
        if (completion.result < 0)
            *error = -completion.result;
        else if (*got < want)
            taken[(*got)++] = completion.result;
        else
            close(completion.result); /* more than there was room for: no kernel does that */
    }
    return over;
}

/* The last one, which the kernel keeps aside. */
static inline int net_uring_fetch(net_uring_t *self, int want, int *taken, int *got, int *error)
{
    int tries, failed = 0;
    self->fetched = 1;
    for (tries = 0; tries < NET_URING_TRIES; tries++) {
        net_uring_grant(self, 1);
        failed = net_uring_enter(self, 0, 1);
        if (net_uring_read(self, want, taken, got, error)) {
            self->owed = 0;
            return 0;
        }
        if (failed && !net_uring_passing(failed))
            break;
        net_yield();
    }
    return failed ? failed : EBUSY;
}

/* Up to `want` connections of a listener, 1 to NET_URING_MOST. `*error` is why there are no more, 0 if there may be.
 * Returns the error of the ring itself; what was taken stands. */
static inline int net_uring_batch(net_uring_t *self, int index, int nonblocking, int want, int *taken, int *got,
                                  int *error)
{
    net_uring_request_t requests[3];
    unsigned made, count = self->relay >= 0 ? 3 : 1;
    uint32_t head;
    uint64_t left;
    int failed;
    *got = *error = 0;
    if ((failed = net_uring_use_up(self, (uint32_t)want - 1)) != 0)
        return failed;
    net_uring_grant(self, (uint32_t)want - 1);
    memset(requests, 0, sizeof requests);
    requests[0].opcode = NET_URING_ACCEPT;
    requests[0].priority = NET_URING_MULTISHOT | NET_URING_DONTWAIT;
    requests[0].fd = self->epoll.base.listeners[index];
    requests[0].accept_flags = SOCK_CLOEXEC | (nonblocking ? (uint32_t)SOCK_NONBLOCK : 0);
    requests[1].opcode = NET_URING_WRITE;
    requests[1].address = (uint64_t)(uintptr_t)self->words;
    requests[2].opcode = NET_URING_READ;
    requests[2].address = (uint64_t)(uintptr_t)self->mended;
    requests[1].flags = requests[2].flags = NET_URING_SILENT;
    requests[1].user_data = requests[2].user_data = NET_URING_RELAYED;
    requests[1].fd = requests[2].fd = self->relay;
    requests[1].length = requests[2].length = sizeof self->words;
    head = *self->cq_head + 1;
    self->words[self->at_head] = head;
    self->words[!self->at_head] = self->at_head ? *self->sq_tail + count : 0;
    if ((self->words[0] | self->words[1]) == 0 || (self->words[0] & self->words[1]) == UINT32_MAX)
        return EAGAIN; /* an eventfd has no such value; another time */
    failed = net_uring_submit(self, requests, count, &made);
    if (net_uring_read(self, want, taken, got, error)) {
        if (count == 1 || *self->cq_head == head)
            return 0;
    } else if (made > 0) {
        self->owed = index + 1;
    }
    if (count == 3) {
        self->late = made == 3; /* not at once: this kernel does it another way */
        while (read(self->relay, &left, sizeof left) < 0 && errno == EINTR) {
        }
    }
    return self->owed ? net_uring_fetch(self, want, taken, got, error) : failed;
}

/* Three connections wait on a blocking socket, two are asked for, and then two again. */
static inline int net_uring_try(net_uring_t *self)
{
    net_socket_t *const watched = self->epoll.base.listeners, before = watched[0];
    struct sockaddr_un name;
    socklen_t length = sizeof name.sun_family; /* only that: the kernel finds a name, which is in no directory */
    int listener, clients[3], taken[4], n, first = 0, second = 0, enough = 0, end = 0, error = 0;
    memset(&name, 0, sizeof name);
    name.sun_family = AF_UNIX;
    for (n = 0; n < 3; n++)
        clients[n] = -1;
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return errno;
    if (bind(listener, (struct sockaddr *)&name, length) != 0 || listen(listener, 4) != 0)
        error = errno;
    length = sizeof name;
    if (error == 0 && getsockname(listener, (struct sockaddr *)&name, &length) != 0)
        error = errno;
    for (n = 0; n < 3 && error == 0; n++) {
        clients[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (clients[n] < 0 || connect(clients[n], (struct sockaddr *)&name, length) != 0)
            error = errno;
    }
    watched[0] = listener;
    if (error == 0)
        error = net_uring_batch(self, 0, 1, 2, taken, &first, &enough);
    if (error == 0)
        error = net_uring_batch(self, 0, 1, 2, taken + first, &second, &end);
    watched[0] = before;
    for (n = 0; n < first + second; n++)
        close(taken[n]);
    for (n = 0; n < 3; n++)
        if (clients[n] >= 0)
            close(clients[n]);
    close(listener);
    if (error)
        return error;
    if (net_overloaded(enough) || net_overloaded(end))
        return net_overloaded(enough) ? enough : end;
    if (self->relay >= 0 && self->fetched)
        return NET_ENOTSUP;
    return first == 2 && enough == 0 && second == 1 && end == EAGAIN ? 0 : NET_ENOTSUP;
}

static inline int net_uring_prove(net_uring_t *self)
{
    int error = net_uring_try(self);
    long works = 1;
    if (error && self->relay >= 0 && (self->late || self->fetched)) {
        works = 2;
        net_uring_give_up(self);
        net_swap(&net_uring_proven, works); /* so that none is made */
        self->owed = self->late = self->fetched = 0;
        self->next = 0;
        error = net_uring_setup(self);
        if (error == 0)
            error = net_uring_try(self);
    }
    net_swap(&net_uring_proven, error ? 0 : works);
    return error;
}

/* From now on accept4() does it. */
static inline void net_uring_forgo(net_uring_t *self)
{
    net_uring_give_up(self);
    self->epoll.base.name = net_engine_epoll.name;
}

/* The connection that the kernel has kept aside since the last take(). Tells how many that is. */
static inline int net_uring_collect(net_uring_t *self, int nonblocking, net_socket_t *taken, int *from)
{
    int index = self->owed - 1, got = 0, error = 0, failed = net_uring_fetch(self, 1, taken, &got, &error);
    if (self->owed == 0) {
        if (got)
            (void)net_blocking(taken[0], !nonblocking); /* it was asked for by another take() */
        self->patience = 0;
        from[0] = index;
        if (error && error != EAGAIN)
            net_engine_failed(&self->epoll.base, error);
        return got;
    }
    if (net_uring_passing(failed) && ++self->patience < NET_URING_PATIENCE) {
        net_epoll_wake(&self->epoll.base);
    } else {
        net_engine_failed(&self->epoll.base, failed); /* that one is lost */
        self->owed = 0;
        net_uring_forgo(self);
    }
    return 0;
}

/* The part of one listener, for net_engine_share(). */
static inline int net_uring_part(net_engine_t *engine, int index, int nonblocking, int want, int *died,
                                 net_socket_t *taken, int *got)
{
    net_uring_t *self = (net_uring_t *)engine;
    *got = 0;
    if (engine->listeners[index] == NET_INVALID)
        return NET_EWOULDBLOCK; /* removed since the turns were given */
    /* For one it is two calls either way; but the request cannot wait, whatever others do to the listener. */
    if ((want == 1 || (!self->ends[index] && !engine->full)) && !engine->flipped)
        return net_engine_part(engine, index, nonblocking, want, died, taken, got);
    while (*got < want && self->ring >= 0 && self->owed == 0) {
        int ask = want - *got < NET_URING_MOST ? want - *got : NET_URING_MOST, n, error;
        int failed = net_uring_batch(self, index, nonblocking, ask, taken + *got, &n, &error);
        *got += n;
        net_add(&engine->in_hand, n);
        if (failed && self->owed) {
            net_epoll_wake(engine); /* for the next take(), which hands it out before those behind it */
            return NET_EWOULDBLOCK;
        }
        if (failed && (self->late || !net_uring_passing(failed)))
            net_uring_forgo(self);
        if (failed)
            break;
        if (error && (error = net_engine_passes(engine, error, died)) != 0)
            return error;
    }
    if (*got < want) {
        int n, error = net_engine_part(engine, index, nonblocking, want - *got, died, taken + *got, &n);
        *got += n;
        return error;
    }
    return 0;
}

static inline int net_uring_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                 int *count)
{
    net_uring_t *self = (net_uring_t *)engine;
    int before = self->owed ? net_uring_collect(self, nonblocking, taken, from) : 0, error = 0;
    *count = 0;
    net_add(&engine->in_hand, before);
    engine->full = before == limit;
    if (before < limit)
        error = net_epoll_take_by(net_uring_part, engine, limit - before, nonblocking, taken + before, from + before,
                                  count);
    *count += before;
    return *count ? 0 : error;
}

/* In a child: the parent's ring has nothing in flight that this could end. */
static inline void net_uring_abandon(net_engine_t *engine)
{
    net_uring_give_up((net_uring_t *)engine);
    free(((net_uring_t *)engine)->ends);
    net_epoll_close(engine);
}

static inline void net_uring_close(net_engine_t *engine)
{
    net_uring_t *self = (net_uring_t *)engine;
    int taken, got = 0, error;
    if (self->ring >= 0 && self->owed && net_uring_fetch(self, 1, &taken, &got, &error) == 0 && got)
        close(taken);
    net_uring_abandon(engine);
}

static inline int net_uring_open(const net_socket_t *listeners, int count, net_engine_t **engine);

static const net_engine_calls_t net_engine_uring = {
    "io_uring",       net_uring_open,   net_uring_close, net_uring_abandon, net_epoll_stop,
    net_epoll_arm,    net_epoll_remove, net_epoll_timer, net_epoll_wake,    net_epoll_calm,
    net_epoll_fileno, net_uring_take,   net_epoll_wait,
};

static inline int net_uring_open(const net_socket_t *listeners, int count, net_engine_t **engine)
{
    net_uring_t *self;
    int n, error = net_epoll_make(&net_engine_uring, sizeof *self, listeners, count, engine);
    if (error)
        return error;
    self = (net_uring_t *)*engine;
    self->ring = self->relay = -1;
    self->ends = (unsigned char *)calloc((size_t)count, 1);
    for (n = 0; n < count && self->ends != NULL; n++) {
        long queued, limit;
        self->ends[n] = net_queue(listeners[n], &queued, &limit) == 0; /* TCP; not so unix sockets */
    }
    error = self->ends == NULL ? ENOMEM : net_uring_setup(self);
    if (error == 0 && !net_get(&net_uring_proven))
        error = net_uring_prove(self);
    if (error) {
        net_uring_close(*engine);
        *engine = NULL;
    }
    return error;
}

#endif
#endif
