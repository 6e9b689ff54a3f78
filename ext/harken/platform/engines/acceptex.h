/* The engine "acceptex": requests for connections that wait in the kernel, for Windows. The contract is in engine.h.
 *
 * Each listener has a line of requests: AcceptEx() with a socket that is not inheritable from birth. The kernel serves
 * them in the order in which they were made, so the oldest one has the oldest connection. A request in flight takes its
 * connection out of the kernel's queue; so there are never more of them than `room`, or one a listener, and none while
 * disarmed.
 *
 * A request that is done sets the event `ready`, and nothing is queued to a completion port: that is what the lowest
 * bit of hEvent means. A port would be the listener's for life; no other acceptor, no event loop and no other process
 * could ever use one with it again, and an event loop that had it before would have made it useless for us. The
 * listeners are only borrowed. (libuv does the same for listeners that come from elsewhere.) All requests share one
 * event, which the kernel clears when one is made: what is done is read from the requests, not from the event.
 *
 * The kernel cancels what a thread has asked for when that thread ends. Whoever looks next, in take() or wait(), makes
 * new requests in place of those.
 *
 * Whoever polls fileno() polls a waker, for select() takes nothing but sockets. The thread pool of the system, which
 * Windows wants for that, waits for `ready` then, and pulls the waker. It makes no requests, for its threads come and
 * go. */
#ifndef HARKEN_ENGINE_ACCEPTEX_H
#define HARKEN_ENGINE_ACCEPTEX_H

#include <mswsock.h>

enum {
    NET_AHEAD = 32,      /* requests of one listener at the most */
    NET_AHEAD_ALL = 512, /* of all listeners together, but one each: a request has a socket and memory of the kernel */
    NET_CANCELLED_IN = 1000, /* milliseconds; at once, unless somebody closed the listener's handle behind our back */
    NET_ACCEPTEX_LOOK = 50,  /* milliseconds */
    NET_ACCEPTEX_PENDING = 0x103, /* STATUS_PENDING */
    NET_ACCEPTEX_ROOM = sizeof(struct sockaddr_in6) + 16 /* for one address, as AcceptEx() wants it */
};

typedef struct {
    OVERLAPPED overlapped; /* the kernel's while it is in flight */
    SOCKET socket;         /* owned, while in a line */
    int furnished;
    char addresses[2 * NET_ACCEPTEX_ROOM];
} net_request_t;

typedef struct {
    LPFN_ACCEPTEX accept_ex;
    int family, type, proto;
    int error;  /* take() has to tell it: why there are no requests, or what became of one */
    int queued; /* line[0] to line[queued - 1] are in flight or done, the oldest first; the others are free */
    net_request_t **line;
} net_source_t;

typedef struct {
    net_engine_t base;
    net_lock_t lock; /* over all that follows, and the common part */
    HANDLE ready;    /* wakes one: a request is done, or there is more than one has taken */
    HANDLE wake;     /* wakes all, until calm() */
    int woken;       /* `wake` is set */
    int waiters;     /* threads in wait() */
    int stale;       /* those that were there at the last wake() */
    unsigned wakes;  /* how many there were */
    double timer_at; /* on net_monotonic(); negative: never */
    int each;        /* requests that a listener's line has place for */
    int shown;       /* 1: fileno() was asked for, and the next three are there; -1: and are about to go */
    int pulled;      /* the waker is pulled; otherwise `watch` waits for `ready` */
    net_waker_t waker;
    PTP_WAIT watch;
    PTP_TIMER clock;
    net_source_t *sources;   /* owned: one a listener */
    net_request_t *requests; /* owned: `each` a listener */
    net_request_t **lines;   /* owned: for each source a part */
    int *order;              /* owned: room for all listeners; of take() */
} net_acceptex_t;

/* ------------------------------------------------------------------ requests */

static inline int net_acceptex_done(const net_request_t *request)
{
    volatile const ULONG_PTR *status = &request->overlapped.Internal;
    int done = (DWORD)*status != NET_ACCEPTEX_PENDING;
    MemoryBarrier(); /* what the kernel wrote before is read after */
    return done;
}

/* Done, and with a connection. */
static inline int net_acceptex_good(const net_request_t *request)
{
    return net_acceptex_done(request) && (LONG)request->overlapped.Internal >= 0;
}

/* Out of the line; its socket is somebody else's from now on. */
static inline void net_acceptex_free(net_source_t *source, int at)
{
    net_request_t *request = source->line[at];
    request->socket = INVALID_SOCKET;
    source->queued--;
    for (; at < source->queued; at++)
        source->line[at] = source->line[at + 1];
    source->line[source->queued] = request;
}

/* From now on the socket has an address, a peer and the options of the listener; and its mode, which may have become
 * another's. */
static inline int net_acceptex_furnish(net_socket_t listener, net_request_t *request)
{
    const char *of = (const char *)&listener;
    if (setsockopt(request->socket, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, of, sizeof listener) != 0)
        return WSAGetLastError();
    request->furnished = 1;
    return net_blocking(request->socket, 0);
}

/* Takes the requests that failed out of the line. Tells how many connections are in it. */
static inline int net_acceptex_sift(net_acceptex_t *self, int index)
{
    net_socket_t listener = self->base.listeners[index];
    net_source_t *source = &self->sources[index];
    DWORD size, flags;
    int at = 0, good = 0, error, there = listener != NET_INVALID;
    while (at < source->queued) {
        net_request_t *request = source->line[at];
        if (!net_acceptex_done(request)) {
            at++;
        } else if (net_acceptex_good(request) && (request->furnished || there)) {
            at++;
            good++;
        } else {
            error = WSA_OPERATION_ABORTED;
            if (there && !WSAGetOverlappedResult(listener, &request->overlapped, &size, FALSE, &flags))
                error = WSAGetLastError();
            closesocket(request->socket);
            net_acceptex_free(source, at);
            if (net_died_waiting(error))
                net_engine_failed(&self->base, error);
            else if (error != WSA_OPERATION_ABORTED) /* that is us, or the end of a thread */
                source->error = error;
        }
    }
    return good;
}

/* One request more. A connection that died before it could be accepted may be the answer; the next one is another's. */
static inline int net_acceptex_ask(net_acceptex_t *self, int index)
{
    net_source_t *source = &self->sources[index];
    net_request_t *request = source->line[source->queued];
    DWORD size;
    int error;
    request->socket = WSASocketW(source->family, source->type, source->proto, NULL, 0,
                                 WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    if (request->socket == INVALID_SOCKET)
        return WSAGetLastError();
    memset(&request->overlapped, 0, sizeof request->overlapped);
    request->overlapped.Internal = NET_ACCEPTEX_PENDING;
    request->overlapped.hEvent = (HANDLE)((ULONG_PTR)self->ready | 1);
    request->furnished = 0;
    if (!source->accept_ex(self->base.listeners[index], request->socket, request->addresses, 0, NET_ACCEPTEX_ROOM,
                           NET_ACCEPTEX_ROOM, &size, &request->overlapped) &&
        (error = WSAGetLastError()) != ERROR_IO_PENDING) {
        closesocket(request->socket);
        request->socket = INVALID_SOCKET;
        return error;
    }
    source->queued++;
    return 0;
}

/* How many requests a listener may have, so that all together are not more than there is room for. */
static inline int net_acceptex_share(const net_acceptex_t *self, int room)
{
    int share = room > 0 && self->base.left > 0 ? room / self->base.left : 0;
    if (share == 0)
        share = room > 0;
    return share < self->each ? share : self->each;
}

/* Lines that are shorter than `share` are filled up. Tells how much there is for take(): connections, and errors.
 *
 * They are counted when the last request was made: each one clears the event, also for a connection that another
 * listener got just before. What comes after the count sets the event, and nobody clears it but who waits for it. */
static inline void net_acceptex_fill_up(net_acceptex_t *self, int index, int share)
{
    net_source_t *source = &self->sources[index];
    int died = NET_AHEAD, error = 0;
    while (source->queued < share && error == 0) {
        error = net_acceptex_ask(self, index);
        if (net_died_waiting(error) && died-- > 0) {
            net_engine_failed(&self->base, error);
            error = 0;
        }
    }
    if (error && source->queued == 0)
        source->error = error;
}

static inline int net_acceptex_tend(net_acceptex_t *self, int share)
{
    int n, found, asked, rounds = NET_AHEAD;
    do {
        for (n = 0, asked = 0; n < self->base.count && share > 0; n++) {
            (void)net_acceptex_sift(self, n);
            if (self->base.listeners[n] == NET_INVALID || self->sources[n].error || self->sources[n].queued >= share)
                continue;
            net_acceptex_fill_up(self, n, share);
            asked = 1;
        }
        for (n = 0, found = 0; n < self->base.count; n++)
            found += net_acceptex_sift(self, n) + (self->sources[n].error != 0);
    } while (found == 0 && asked && --rounds > 0); /* one that failed meanwhile has cleared the event, too */
    return found + (rounds == 0);
}

/* The connections stay in the kernel's queue from now on. Of those requests that it had served already some may look as
 * if they were in flight for a moment longer. */
static inline void net_acceptex_cancel(net_acceptex_t *self, int index)
{
    net_source_t *source = &self->sources[index];
    int at;
    if (self->base.listeners[index] == NET_INVALID)
        return;
    for (at = 0; at < source->queued; at++)
        if (!net_acceptex_done(source->line[at]))
            (void)CancelIoEx((HANDLE)self->base.listeners[index], &source->line[at]->overlapped);
}

/* Until nothing is in flight. That is written by the thread that asked, in the kernel, whatever else it does. */
static inline void net_acceptex_settle(net_acceptex_t *self, int index)
{
    net_source_t *source = &self->sources[index];
    double until = net_monotonic() + (double)NET_CANCELLED_IN / 1000;
    int at, looked = 0;
    for (at = 0; at < source->queued; at++)
        while (!net_acceptex_done(source->line[at]) && net_monotonic() < until)
            Sleep(looked++ < 100 ? 0 : 1);
}

static inline void net_acceptex_cancel_all(net_acceptex_t *self, int settle)
{
    int n;
    for (n = 0; n < self->base.count; n++)
        net_acceptex_cancel(self, n);
    for (n = 0; n < self->base.count && settle; n++)
        net_acceptex_settle(self, n);
}

/* ------------------------------------------------------------------ what a loop polls */

/* With the lock. `found`: what tend() told. */
static inline void net_acceptex_show(net_acceptex_t *self, int found)
{
    int news = self->woken || (found > 0 && self->base.armed);
    if (self->shown <= 0)
        return;
    if (news && !self->pulled)
        net_waker_pull(&self->waker);
    else if (!news && self->pulled)
        net_waker_calm(&self->waker);
    self->pulled = news;
    if (!news)
        SetThreadpoolWait(self->watch, self->ready, NULL);
}

static inline void net_acceptex_wake_locked(net_acceptex_t *self)
{
    if (!self->woken)
        SetEvent(self->wake);
    self->woken = 1;
    self->stale = self->waiters;
    self->wakes++;
    net_acceptex_show(self, 0);
}

/* In a thread of the pool: a request is done. What was cancelled is for take() too, which makes another. */
static VOID CALLBACK net_acceptex_watched(PTP_CALLBACK_INSTANCE instance, PVOID engine, PTP_WAIT wait,
                                          TP_WAIT_RESULT result)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    int n, share, found;
    (void)instance;
    (void)wait;
    (void)result;
    net_lock(&self->lock);
    if (self->shown > 0) {
        found = net_acceptex_tend(self, 0);
        share = net_acceptex_share(self, self->base.room);
        for (n = 0; n < self->base.count; n++)
            found += self->base.listeners[n] != NET_INVALID && self->sources[n].queued < share;
        net_acceptex_show(self, found);
        if (found > 0 && self->base.armed && self->waiters)
            SetEvent(self->ready);
    }
    net_unlock(&self->lock);
}

/* With the lock. Not a moment too early. */
static inline void net_acceptex_set_clock(net_acceptex_t *self)
{
    ULARGE_INTEGER ticks; /* of 100 ns; negative: from now */
    FILETIME due;
    double left = self->timer_at - net_monotonic();
    if (self->shown <= 0)
        return;
    if (self->timer_at < 0) {
        SetThreadpoolTimer(self->clock, NULL, 0, 0);
        return;
    }
    ticks.QuadPart = (ULONGLONG)(-(LONGLONG)((left > 0 ? left : 0) * 1e7) - 1);
    due.dwLowDateTime = ticks.LowPart;
    due.dwHighDateTime = ticks.HighPart;
    SetThreadpoolTimer(self->clock, &due, 0, 0);
}

static VOID CALLBACK net_acceptex_rang(PTP_CALLBACK_INSTANCE instance, PVOID engine, PTP_TIMER clock)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    (void)instance;
    (void)clock;
    net_lock(&self->lock);
    if (self->timer_at >= 0 && self->timer_at <= net_monotonic())
        net_acceptex_wake_locked(self);
    else if (self->timer_at >= 0)
        net_acceptex_set_clock(self);
    net_unlock(&self->lock);
}

/* Whoever is in one of the two functions above has left it when this returns. */
static inline void net_acceptex_hide(net_acceptex_t *self)
{
    if (!self->shown)
        return;
    net_lock(&self->lock);
    self->shown = -1;
    net_unlock(&self->lock);
    SetThreadpoolWait(self->watch, NULL, NULL);
    WaitForThreadpoolWaitCallbacks(self->watch, TRUE);
    CloseThreadpoolWait(self->watch);
    SetThreadpoolTimer(self->clock, NULL, 0, 0);
    WaitForThreadpoolTimerCallbacks(self->clock, TRUE);
    CloseThreadpoolTimer(self->clock);
    net_waker_close(&self->waker);
}

static inline int net_acceptex_fileno(net_engine_t *engine, net_socket_t *handle)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    int error = 0;
    net_lock(&self->lock);
    if (!self->shown && (error = net_waker_open(&self->waker)) == 0) {
        self->watch = CreateThreadpoolWait(net_acceptex_watched, self, NULL);
        self->clock = CreateThreadpoolTimer(net_acceptex_rang, self, NULL);
        if (self->watch && self->clock) {
            self->shown = 1;
            net_acceptex_set_clock(self);
            net_acceptex_show(self, net_acceptex_tend(self, 0));
        } else {
            error = NET_ENOMEM;
            if (self->watch)
                CloseThreadpoolWait(self->watch);
            if (self->clock)
                CloseThreadpoolTimer(self->clock);
            net_waker_close(&self->waker);
        }
    }
    *handle = error ? NET_INVALID : net_waker_handle(&self->waker);
    net_unlock(&self->lock);
    return error;
}

/* ------------------------------------------------------------------ the contract */

static inline void net_acceptex_wake(net_engine_t *engine)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    net_lock(&self->lock);
    net_acceptex_wake_locked(self);
    net_unlock(&self->lock);
}

/* Not before all who were to be woken have been: who is interrupted in the kernel sees the event only afterwards. */
static inline void net_acceptex_calm(net_engine_t *engine)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    net_lock(&self->lock);
    if (!engine->stopped && self->woken && self->stale == 0) {
        ResetEvent(self->wake);
        self->woken = 0;
        net_acceptex_show(self, net_acceptex_tend(self, 0));
    }
    if (self->timer_at >= 0 && self->timer_at <= net_monotonic())
        self->timer_at = -1;
    net_unlock(&self->lock);
}

/* A listener that is broken is no failure: take() tells which one. */
static inline int net_acceptex_arm(net_engine_t *engine, int on)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    int n, found, error = 0;
    net_lock(&self->lock);
    engine->armed = on;
    found = net_acceptex_tend(self, on ? net_acceptex_share(self, engine->room) : 0);
    if (found > 0 && on && self->waiters)
        SetEvent(self->ready);
    for (n = 0; n < engine->count && on; n++) {
        if (net_overloaded(self->sources[n].error)) {
            error = self->sources[n].error;
            self->sources[n].error = 0;
            engine->armed = 0;
        }
    }
    if (!engine->armed)
        net_acceptex_cancel_all(self, 0);
    net_acceptex_show(self, found);
    net_unlock(&self->lock);
    return error;
}

static inline void net_acceptex_stop(net_engine_t *engine)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    net_lock(&self->lock);
    engine->armed = 0;
    engine->stopped = 1;
    net_acceptex_cancel_all(self, 1);
    net_acceptex_wake_locked(self);
    net_unlock(&self->lock);
}

/* Its connections stay for take(); they need the listener for the last time now. */
static inline void net_acceptex_remove(net_engine_t *engine, int index)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    net_source_t *source = &self->sources[index];
    int at, error;
    net_lock(&self->lock);
    if (engine->listeners[index] != NET_INVALID) {
        net_acceptex_cancel(self, index);
        net_acceptex_settle(self, index);
        (void)net_acceptex_sift(self, index);
        for (at = 0; at < source->queued; at++)
            if (net_acceptex_good(source->line[at]) &&
                (error = net_acceptex_furnish(engine->listeners[index], source->line[at])) != 0) {
                net_engine_failed(engine, error);
                source->line[at]->furnished = 0; /* closed by the next one who sifts */
            }
        source->error = 0;
        engine->listeners[index] = NET_INVALID;
        engine->left--;
        net_acceptex_wake_locked(self);
    }
    net_unlock(&self->lock);
}

static inline int net_acceptex_timer(net_engine_t *engine, int milliseconds)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    net_lock(&self->lock);
    self->timer_at = milliseconds < 0 ? -1 : net_monotonic() + milliseconds / 1000.0;
    net_acceptex_set_clock(self);
    if (self->waiters && milliseconds >= 0)
        net_acceptex_wake_locked(self);
    net_unlock(&self->lock);
    return 0;
}

/* The oldest connections of one line, at most `part`. */
static inline int net_acceptex_give(net_acceptex_t *self, int index, int part, net_socket_t *taken, int *from)
{
    net_source_t *source = &self->sources[index];
    int at = 0, given = 0, error;
    while (at < source->queued && given < part) {
        net_request_t *request = source->line[at];
        if (!net_acceptex_good(request)) {
            at++;
            continue;
        }
        error = request->furnished ? 0 : net_acceptex_furnish(self->base.listeners[index], request);
        if (error) { /* of the connection: it may have been reset meanwhile. A broken listener fails by itself */
            net_engine_failed(&self->base, error);
            closesocket(request->socket);
        } else {
            taken[given] = request->socket;
            from[given++] = index;
        }
        net_acceptex_free(source, at);
    }
    return given;
}

/* Once around. Each listener gives its part of what is still wanted, or what it has. */
static inline int net_acceptex_round(net_acceptex_t *self, int wanted, net_socket_t *taken, int *from)
{
    net_engine_t *engine = &self->base;
    int n, givers = 0, part, given = 0;
    for (n = 0; n < engine->count; n++)
        givers += net_acceptex_sift(self, n) > 0;
    part = givers > 0 && wanted > givers ? wanted / givers : 1;
    for (n = 0; n < engine->count && given < wanted; n++) {
        if (part > wanted - given)
            part = wanted - given;
        given += net_acceptex_give(self, (engine->first + n) % engine->count, part, taken + given, from + given);
    }
    return given;
}

/* Disarmed, it asks accept(), for there are no requests: those handles are inheritable for a moment. Both locks are kept:
 * on Windows no other process changes the mode of our handle. */
static inline int net_acceptex_accept(net_acceptex_t *self, int limit, net_socket_t *taken, int *from, int *count)
{
    net_engine_t *engine = &self->base;
    net_lock_t *lock = engine->lock;
    int n, found = 0, error;
    for (n = 0; n < engine->count; n++) {
        int index = (engine->first + n) % engine->count;
        if (engine->listeners[index] != NET_INVALID)
            self->order[found++] = index;
    }
    engine->lock = NULL;
    error = net_engine_share(net_engine_part, engine, limit, 1, self->order, &found, taken, from, count);
    engine->lock = lock;
    return error;
}

static inline int net_acceptex_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                    int *count)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    int n, index, given, found, done = 0, error = NET_EWOULDBLOCK;
    (void)nonblocking;
    net_lock(&self->lock);
    engine->culprit = -1;
    do {
        found = net_acceptex_tend(self, engine->armed ? net_acceptex_share(self, engine->room) : 0);
        given = net_acceptex_round(self, limit - done, taken + done, from + done);
        done += given;
        engine->room -= engine->room == NET_ROOM_FOR_ALL ? 0 : given;
    } while (given > 0 && done < limit);
    if (given > 0 && engine->armed)
        found = net_acceptex_tend(self, net_acceptex_share(self, engine->room));
    if (done < limit && !engine->armed && !engine->stopped) {
        error = net_acceptex_accept(self, limit - done, taken + done, from + done, &given);
        done += given;
    }
    for (n = 0; n < engine->count && done == 0 && error == NET_EWOULDBLOCK; n++) {
        index = (engine->first + n) % engine->count;
        if (self->sources[index].error == 0)
            continue;
        error = self->sources[index].error;
        self->sources[index].error = 0;
        if (!net_overloaded(error))
            engine->culprit = index;
    }
    if (found > 0 && engine->armed && self->waiters)
        SetEvent(self->ready);
    net_acceptex_show(self, found);
    engine->first = (engine->first + 1) % engine->count;
    engine->full = done == limit;
    *count = done;
    net_unlock(&self->lock);
    return done ? 0 : error;
}

/* One connection wakes one thread. Who was woken and does not take it leaves the others asleep, so they look by
 * themselves now and then. */
static inline int net_acceptex_wait(net_engine_t *engine, int milliseconds, int *outcome)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    HANDLE events[2];
    double now = net_monotonic(), until = milliseconds < 0 ? -1 : now + milliseconds / 1000.0, left;
    DWORD result = WAIT_TIMEOUT;
    unsigned wakes;
    int found, error = 0;
    events[0] = self->wake;
    events[1] = self->ready;
    *outcome = NET_TIMED_OUT;
    net_lock(&self->lock);
    self->waiters++;
    wakes = self->wakes;
    for (;;) {
        found = engine->armed ? net_acceptex_tend(self, net_acceptex_share(self, engine->room)) : 0;
        if (found > 0) {
            *outcome = NET_READY;
            if (found > 1 && self->waiters > 1)
                SetEvent(self->ready);
            net_acceptex_show(self, found);
            break;
        }
        if (self->woken || wakes != self->wakes || (self->timer_at >= 0 && self->timer_at <= now)) {
            *outcome = NET_WOKEN;
            break;
        }
        if ((until >= 0 && until <= now) || result == WAIT_FAILED)
            break;
        left = (double)NET_ACCEPTEX_LOOK / 1000;
        if (until >= 0 && until - now < left)
            left = until - now;
        if (self->timer_at >= 0 && self->timer_at - now < left)
            left = self->timer_at - now;
        net_unlock(&self->lock);
        result = WaitForMultipleObjects(2, events, FALSE, (DWORD)(left * 1000) + 1);
        if (result == WAIT_FAILED)
            error = (int)GetLastError();
        net_lock(&self->lock);
        now = net_monotonic();
    }
    self->waiters--;
    if (wakes != self->wakes)
        self->stale--;
    net_unlock(&self->lock);
    return error;
}

static inline void net_acceptex_close(net_engine_t *engine)
{
    net_acceptex_t *self = (net_acceptex_t *)engine;
    int n, at, lost = 0;
    net_acceptex_hide(self);
    if (self->requests && self->lines && self->sources)
        net_acceptex_cancel_all(self, 1);
    for (n = 0; n < engine->count && self->sources; n++) {
        for (at = 0; at < self->sources[n].queued; at++) {
            lost += !net_acceptex_done(self->sources[n].line[at]);
            closesocket(self->sources[n].line[at]->socket);
        }
    }
    if (self->ready)
        CloseHandle(self->ready);
    if (self->wake)
        CloseHandle(self->wake);
    if (!lost) /* otherwise the kernel may still write to them */
        free(self->requests);
    free(self->lines);
    free(self->order);
    free(self->sources);
    net_engine_free(engine);
}

static inline int net_acceptex_open(const net_socket_t *listeners, int count, net_engine_t **engine);

static const net_engine_calls_t net_engine_acceptex = {
    "acceptex",          net_acceptex_open,   net_acceptex_close, net_acceptex_close, net_acceptex_stop,
    net_acceptex_arm,    net_acceptex_remove, net_acceptex_timer, net_acceptex_wake,  net_acceptex_calm,
    net_acceptex_fileno, net_acceptex_take,   net_acceptex_wait,
};

/* Has this listener AcceptEx()? Those of TCP have, unless a layer over Winsock is without; AF_UNIX is left to the other
 * engine. */
static inline int net_acceptex_probe(net_socket_t listener, net_source_t *source)
{
    GUID name = WSAID_ACCEPTEX;
    DWORD size;
    int error = net_describe(listener, &source->family, &source->type, &source->proto);
    if (error)
        return error;
    if (source->family != AF_INET && source->family != AF_INET6)
        return NET_ENOTSUP;
    return WSAIoctl(listener, SIO_GET_EXTENSION_FUNCTION_POINTER, &name, sizeof name, &source->accept_ex,
                    sizeof source->accept_ex, &size, NULL, NULL) == 0
               ? 0
               : WSAGetLastError();
}

static inline int net_acceptex_open(const net_socket_t *listeners, int count, net_engine_t **engine)
{
    net_acceptex_t *self;
    size_t requests;
    int n, at, error = net_engine_make(&net_engine_acceptex, sizeof *self, listeners, count, engine);
    if (error)
        return error;
    self = (net_acceptex_t *)*engine;
    net_lock_init(&self->lock);
    self->timer_at = -1;
    self->each = NET_AHEAD_ALL / count < 1 ? 1 : NET_AHEAD_ALL / count > NET_AHEAD ? NET_AHEAD : NET_AHEAD_ALL / count;
    requests = (size_t)count * (size_t)self->each;
    self->sources = (net_source_t *)calloc((size_t)count, sizeof *self->sources);
    self->requests = (net_request_t *)calloc(requests, sizeof *self->requests);
    self->lines = (net_request_t **)calloc(requests, sizeof *self->lines);
    self->order = (int *)malloc((size_t)count * sizeof *self->order);
    self->ready = CreateEventW(NULL, FALSE, FALSE, NULL);
    self->wake = CreateEventW(NULL, TRUE, FALSE, NULL);
    if (!self->sources || !self->requests || !self->lines || !self->order || !self->ready || !self->wake)
        error = NET_ENOMEM;
    for (n = 0; n < count && error == 0; n++) {
        self->sources[n].line = self->lines + (size_t)n * (size_t)self->each;
        for (at = 0; at < self->each; at++)
            self->sources[n].line[at] = &self->requests[(size_t)n * (size_t)self->each + (size_t)at];
        if (listeners[n] != NET_INVALID)
            error = net_acceptex_probe(listeners[n], &self->sources[n]);
    }
    if (error) {
        net_acceptex_close(*engine);
        *engine = NULL;
    }
    return error;
}

#endif
