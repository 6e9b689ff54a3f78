/* How connections are taken from listeners: one contract, several engines, chosen when the program runs.
 *
 * An engine watches a fixed list of listeners, which it borrows: the caller closes them, after net_engine_remove().
 * The listeners are made non-blocking; take() makes sure of it, for other processes may share them. Errors, results and
 * NET_EINTR are as in net.h; nothing here touches Python or needs the GIL.
 *
 *   find     an engine by name, NULL for one that this system's build has not; NULL as the name: the best that works
 *   open     everything that the engine needs, or nothing; NET_INVALID in the list stands for one that was removed before.
 *            Disarmed, no timer, not woken
 *   close    gives back all that open() made; the listeners stay open. No other call is in flight, none comes after it.
 *            Connections that the engine holds are closed: whoever wants them calls stop() and take() before
 *   stop     no connection is taken out of the kernel's queue from now on, ever; outstanding requests are cancelled, or
 *            have ended when this returns. Everybody is woken, for good. take() hands out what the engine still holds,
 *            then says NET_EWOULDBLOCK
 *   arm      on: connections make wait() return and fileno() readable; off: they do not, and stay in the kernel's queue
 *            as far as the engine can help it. An engine that takes connections ahead of the question (AcceptEx) takes
 *            no more, and keeps those it has for take(). Whoever is in wait() meanwhile is not left behind: from now on
 *            he waits for what is armed now. A failure leaves all disarmed
 *   remove   forget one listener, which is about to be closed or given away: when this returns, no call refers to its
 *            handle, and none will. Whoever is in wait() is woken. Twice is harmless. It may wait for calls of wait()
 *            to come back, which need nothing that the caller has
 *   timer    after so many milliseconds wake() happens by itself, once; a negative number: never. Replaces the last one
 *   wake     wait() returns NET_WOKEN, in every thread that is in it, and so does the next; fileno() is readable;
 *            until calm()
 *   calm     ends that (but not after stop()). What was written before a wake() that is lost here is seen after calm()
 *   fileno   what a loop can poll for reading: readable when take() would find something, or when woken. Where there is
 *            no such thing: NET_ENOTSUP
 *   take     without waiting, up to `limit` connections, not inheritable from birth, and non-blocking if
 *            `nonblocking` (or where every handle is); `from[n]` is the index of the listener of `taken[n]`. Works armed
 *            or not. Fair: the batch is shared out among the listeners that have connections, and another one is
 *            the first each time. Connections that died waiting are passed over and counted in `failures`, though not
 *            without end. 0 when something was taken; otherwise the error that stood in the way, NET_EWOULDBLOCK if
 *            nothing waits. For an error of a listener (closed behind our back, say) `culprit` is its index,
 *            otherwise -1. `full`: the limit ended the batch, there may be more. While accept() is called `lock` is
 *            given up, for the mode of a listener is shared with whoever has that listener, and may become one that
 *            blocks at any moment
 *   wait     until there is something for take() (NET_READY), wake() (NET_WOKEN) or the time is over (NET_TIMED_OUT;
 *            negative: never, but where NET_WAIT_SLICE is positive, callers wait in slices). May say NET_READY too
 *            often, never too seldom. NET_EINTR after a signal
 *
 * Threads: any number of threads may be in wait(), and any thread may call wake(), at any time between open() and
 * close(). All other functions are called by one thread at a time (the caller has a lock), also while others are in
 * wait() and wake(). While `busy` is set a thread is in take() without that lock: others may call all but take(), close()
 * and abandon(). remove() returns at once then: that thread may still be in accept() on the handle, until `inside` of
 * that listener is 0, and takes no other from it. Where that lasts, others may call net_engine_take_beside().
 *
 * Forks: a child calls nothing but abandon(): it closes the child's copies of what open() made, and frees the memory,
 * without any effect on the parent's engine.
 */
#ifndef HARKEN_ENGINE_H
#define HARKEN_ENGINE_H

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "platform/net.h"

/* How many connections of each kind of error were lost: few kinds, in the order in which they came. */
enum { NET_FAILURES = 16 };
typedef struct {
    int error[NET_FAILURES]; /* 0: free */
    unsigned long long count[NET_FAILURES];
} net_failures_t;

static inline void net_failures_count(net_failures_t *failures, int error, unsigned long long count)
{
    int n = 0;
    while (n < NET_FAILURES - 1 && failures->error[n] != 0 && failures->error[n] != error)
        n++;
    failures->error[n] = error;
    failures->count[n] += count;
}

static inline void net_failures_add(net_failures_t *sum, const net_failures_t *more)
{
    int n;
    for (n = 0; n < NET_FAILURES; n++)
        if (more->count[n])
            net_failures_count(sum, more->error[n], more->count[n]);
}

typedef struct net_engine net_engine_t;

typedef struct {
    const char *name;
    int (*open)(const net_socket_t *listeners, int count, net_engine_t **engine);
    void (*close)(net_engine_t *engine);
    void (*abandon)(net_engine_t *engine);
    void (*stop)(net_engine_t *engine);
    int (*arm)(net_engine_t *engine, int on);
    void (*remove)(net_engine_t *engine, int index);
    int (*timer)(net_engine_t *engine, int milliseconds);
    void (*wake)(net_engine_t *engine);
    void (*calm)(net_engine_t *engine);
    int (*fileno)(net_engine_t *engine, net_socket_t *handle);
    int (*take)(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from, int *count);
    int (*wait)(net_engine_t *engine, int milliseconds, int *outcome);
} net_engine_calls_t;

#define NET_ROOM_FOR_ALL INT_MAX
enum { NET_FLIPS = 2 }; /* so often by accident */

/* How a thread in take() that has given the lock up is told to come back. By arm(): when it has looked at one listener,
 * and with at most one connection from it. Coming back before that, it would take nothing for as long as other threads
 * keep calling pause() and resume() faster than one look takes. By stop() and remove(): without another accept(). */
enum { NET_RECALLED = 1, NET_STOPPED = 2 };

/* Stands first in what each engine makes of it. The caller reads `failures`, `culprit` and `full`, and writes `room`,
 * under its lock. */
struct net_engine {
    const net_engine_calls_t *calls;
    const char *name;        /* what does the work now; not that of `calls` when a part was given up */
    net_socket_t *listeners; /* a copy of the list, freed with the engine; NET_INVALID where one was removed */
    int count;
    int left;    /* those that were not removed */
    int first;   /* whose turn it is to be the first */
    int armed;
    int stopped;
    int culprit; /* of the last take() */
    int full;    /* the last take() */
    int room;    /* how many the caller could take now, written before arm() and take(). An engine that takes
                    connections ahead takes no more, or one a listener. NET_ROOM_FOR_ALL, the default: as it likes */
    net_lock_t *lock; /* the caller's, which it has in all calls but wait() and wake(). NULL: it is not given up */
    int busy;         /* 1 + the index of the listener from which a thread accepts without the lock; 0: none does */
    int held_up;      /* the caller has noted that this lasts, and asked it to come back; 0 again with `busy` */
    int asked;        /* how many connections that thread may take */
    long in_hand;     /* how many it has so far */
    int beside;       /* how many those may take who accept beside it: the caller's */
    long recalled;    /* that thread is to come back: NET_RECALLED or NET_STOPPED */
    int *inside;      /* owned: for each listener, how many threads are in accept() on it without the lock */
    int flipped;      /* how often we have seen that somebody had made a listener block */
    net_failures_t failures;
};

static inline void net_engine_failed(net_engine_t *engine, int error) { net_failures_count(&engine->failures, error, 1); }

static inline void net_engine_free(net_engine_t *engine)
{
    free(engine->listeners);
    free(engine->inside);
    free(engine);
}

/* The common part of open() and close(). `size` is that of the engine's own struct. */
static inline int net_engine_make(const net_engine_calls_t *calls, size_t size, const net_socket_t *listeners,
                                  int count, net_engine_t **engine)
{
    net_engine_t *made = (net_engine_t *)calloc(1, size);
    *engine = NULL;
    if (made == NULL)
        return NET_ENOMEM;
    made->listeners = (net_socket_t *)malloc((size_t)count * sizeof *listeners);
    made->inside = (int *)calloc((size_t)count, sizeof *made->inside);
    if (made->listeners == NULL || made->inside == NULL) {
        net_engine_free(made);
        return NET_ENOMEM;
    }
    memcpy(made->listeners, listeners, (size_t)count * sizeof *listeners);
    made->calls = calls;
    made->name = calls->name;
    for (made->count = 0; made->count < count; made->count++) {
        if (listeners[made->count] == NET_INVALID)
            continue;
        made->left++;
        (void)net_blocking(listeners[made->count], 0);
    }
    made->culprit = -1;
    made->room = NET_ROOM_FOR_ALL;
    *engine = made;
    return 0;
}

/* An error of accept(): 0 if the next connection may be well. What died is counted; `*died` bounds how often. */
static inline int net_engine_passes(net_engine_t *engine, int error, int *died)
{
    if (!net_died_waiting(error) && !net_forbidden(error))
        return error;
    net_engine_failed(engine, error);
    if (--*died >= 0)
        return 0;
    return net_forbidden(error) ? error : NET_EWOULDBLOCK;
}

/* The part of one listener: up to `want` connections, `*got` is how many. The error is why there are no more. */
typedef int (*net_engine_part_t)(net_engine_t *engine, int index, int nonblocking, int want, int *died,
                                 net_socket_t *taken, int *got);

static inline void net_engine_go_inside(net_engine_t *engine, int index)
{
    engine->inside[index]++;
    if (engine->lock)
        net_unlock(engine->lock);
}

static inline void net_engine_come_back(net_engine_t *engine, int index)
{
    if (engine->lock)
        net_lock(engine->lock);
    engine->inside[index]--;
}

/* Did it block? A failure comes again, from accept(). */
static inline int net_engine_unblock(net_engine_t *engine, net_socket_t listener)
{
    int blocks = 0;
    if (net_mode(listener, &blocks) == 0 && blocks) {
        engine->flipped++;
        (void)net_blocking(listener, 0);
    }
    return blocks;
}

/* Is there another one, after `got`? With accept() in vain, a listener that somebody made block would hold us up. Where
 * the number is not known the first is mostly the only one; where more come, they mostly come in numbers, and attempts
 * cost less than a look before each, as long as nobody changes the mode. */
static inline int net_engine_another(const net_engine_t *engine, net_socket_t listener, long promised, int got)
{
    int outcome;
    if (promised >= 0)
        return got < promised;
    if (got > 1 && !engine->flipped)
        return 1;
    return net_wait(listener, POLLIN, NULL, 0, &outcome) != 0 || outcome == NET_READY;
}

/* With accept(). */
static inline int net_engine_part(net_engine_t *engine, int index, int nonblocking, int want, int *died,
                                  net_socket_t *taken, int *got)
{
    net_socket_t listener = engine->listeners[index];
    long promised;
    int error = 0;
    *got = 0;
    if (listener == NET_INVALID)
        return NET_EWOULDBLOCK; /* removed since the turns were given */
    engine->busy = index + 1;
    net_engine_go_inside(engine, index);
    promised = want < 2 ? -1 : net_promised(listener);
    (void)net_engine_unblock(engine, listener);
    while (*got < want && error == 0) {
        if (net_get(&engine->recalled) > (*got ? 0 : NET_RECALLED) ||
            !net_engine_another(engine, listener, promised, *got) ||
            (engine->flipped && *got > 0 && net_engine_unblock(engine, listener))) {
            error = NET_EWOULDBLOCK;
            break;
        }
        error = net_accept(listener, nonblocking, NULL, NULL, &taken[*got]);
        if (error == 0) {
            ++*got;
            net_add(&engine->in_hand, 1);
        } else {
            if (engine->lock)
                net_lock(engine->lock); /* and still busy */
            error = net_engine_passes(engine, error, died);
            if (engine->lock)
                net_unlock(engine->lock);
        }
    }
    net_engine_come_back(engine, index);
    engine->busy = engine->held_up = 0;
    return error;
}

/* For one who has the lock, too, while another thread is held up in accept(): one connection of each listener at the
 * most. Needs nothing of what take() works on. */
static inline int net_engine_take_beside(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken,
                                         int *from, int *count)
{
    int n, outcome, error;
    *count = 0;
    for (n = 0; n < engine->count && *count < limit && engine->armed; n++) {
        net_socket_t listener = engine->listeners[n];
        if (listener == NET_INVALID)
            continue;
        net_engine_go_inside(engine, n);
        error = net_wait(listener, POLLIN, NULL, 0, &outcome);
        if (error == 0 && outcome == NET_READY) {
            int blocks = 0;
            if (net_mode(listener, &blocks) == 0 && blocks)
                (void)net_blocking(listener, 0);
            error = net_accept(listener, nonblocking, NULL, NULL, &taken[*count]);
        } else {
            error = NET_EWOULDBLOCK;
        }
        net_engine_come_back(engine, n);
        if (error == 0)
            from[(*count)++] = n;
    }
    return *count ? 0 : NET_EWOULDBLOCK;
}

/* Connections from those of the listeners that are in `ready` (indices, in the order of their turn), shared out: each
 * gives its part first, then the rest is whoever's has more. Those that are exhausted leave `ready`; `*ready_count` is
 * how many have more. */
static inline int net_engine_share(net_engine_part_t take_part, net_engine_t *engine, int limit, int nonblocking,
                                   int *ready, int *ready_count, net_socket_t *taken, int *from, int *count)
{
    int error = 0, died = limit, done = 0, left = *ready_count;
    if (engine->flipped > NET_FLIPS && take_part == net_engine_part)
        limit = 1; /* somebody does that all the time: whoever is held up has no connection in his hand that nobody serves */
    *count = 0;
    engine->culprit = -1;
    while (left > 0 && done < limit && error == 0 && !net_get(&engine->recalled)) {
        int part = (limit - done) / left, n, kept = 0;
        if (part == 0)
            part = 1;
        for (n = 0; n < left; n++) {
            int got = 0, index = ready[n], failed = 0;
            if (done < limit && error == 0 && !net_get(&engine->recalled))
                failed = take_part(engine, index, nonblocking, part < limit - done ? part : limit - done, &died,
                                   &taken[done], &got);
            for (; got > 0; got--)
                from[done++] = index;
            if (engine->listeners[index] == NET_INVALID)
                failed = NET_EWOULDBLOCK; /* removed meanwhile, so the error was no news */
            if (failed && failed != NET_EWOULDBLOCK && error == 0) {
                error = failed;
                if (!net_overloaded(failed) && !net_forbidden(failed) && failed != NET_EINTR)
                    engine->culprit = index;
            }
            if (failed != NET_EWOULDBLOCK)
                ready[kept++] = index;
        }
        left = kept;
    }
    *ready_count = net_get(&engine->recalled) ? 0 : left; /* whoever recalled us has changed what is watched */
    *count = done;
    engine->full = done == limit;
    return done ? 0 : error ? error : NET_EWOULDBLOCK;
}

/* The listeners that are left, another one first each time. */
static inline int net_engine_turn(net_engine_t *engine, int *ready)
{
    int n, found = 0;
    engine->first = (engine->first + 1) % engine->count;
    for (n = 0; n < engine->count; n++) {
        int index = (engine->first + n) % engine->count;
        if (engine->listeners[index] != NET_INVALID)
            ready[found++] = index;
    }
    return found;
}

/* For an engine whose system watches listeners, and can tell which of them have something. */
enum { NET_TRUST = 4 }; /* how many batches in a row may do without a look at listeners that were idle */
typedef struct {
    int *ready;  /* owned: room for all listeners, and once more, for what the system says */
    int count;   /* how many of `ready` had more when the last batch was full */
    int trusted; /* batches since the last look */
} net_turns_t;

static inline int net_turns_make(net_turns_t *turns, int count)
{
    turns->ready = (int *)malloc(2 * (size_t)count * sizeof *turns->ready);
    return turns->ready == NULL ? NET_ENOMEM : 0;
}

/* Puts the indices of those that have something into `said`, in any order. */
typedef int (*net_engine_ask_t)(net_engine_t *engine, int *said, int *count);

/* Which listeners have something: asked from the system, unless the answer is known. Another one is the first each
 * time. */
static inline int net_engine_look(net_engine_t *engine, net_turns_t *turns, net_engine_ask_t ask)
{
    int n, *said = turns->ready + engine->count, count = 0, start = 0, error;
    if (turns->count > 0 && engine->full && turns->trusted++ < NET_TRUST) {
        int first = turns->ready[0];
        memmove(turns->ready, turns->ready + 1, ((size_t)turns->count - 1) * sizeof *turns->ready);
        turns->ready[turns->count - 1] = first;
        return 0;
    }
    turns->trusted = 0;
    turns->count = net_engine_turn(engine, turns->ready);
    if (engine->left <= 1 || !engine->armed)
        return 0;
    turns->count = 0;
    if ((error = ask(engine, said, &count)) != 0)
        return error;
    while (start < count && said[start] < engine->first)
        start++;
    for (n = 0; n < count; n++)
        turns->ready[n] = said[(start + n) % count];
    turns->count = count;
    return 0;
}

/* Makes the system watch one listener, or not any more. */
typedef int (*net_engine_watch_t)(net_engine_t *engine, int index, int on);

/* All of them or none. */
static inline int net_engine_watch_all(net_engine_t *engine, int on, net_engine_watch_t watch)
{
    int n, error = 0;
    for (n = 0; n < engine->count && error == 0; n++)
        if (engine->listeners[n] != NET_INVALID)
            error = watch(engine, n, on);
    if (error)
        while (n-- > 0)
            if (engine->listeners[n] != NET_INVALID)
                (void)watch(engine, n, 0);
    engine->armed = on && error == 0;
    return error;
}

/* HARKEN_KQUEUE: a build on Linux with tests/kqueue, which see. */
#ifdef _WIN32
#include "platform/engines/acceptex.h"
#include "platform/engines/accept.h"
/* The best first. */
static const net_engine_calls_t *const net_engines[] = {&net_engine_acceptex, &net_engine_poll, NULL};
#elif defined(HARKEN_KQUEUE) || (!defined(__linux__) && __has_include(<sys/event.h>))
#include "platform/engines/kqueue.h"
#include "platform/engines/accept.h"
static const net_engine_calls_t *const net_engines[] = {&net_engine_kqueue, &net_engine_poll, NULL};
#elif defined(__linux__)
#include "platform/engines/accept4.h"
#include "platform/engines/accept.h"
#include "platform/engines/io_uring.h"
static const net_engine_calls_t *const net_engines[] = {
#ifdef NET_URING
    &net_engine_uring,
#endif
    &net_engine_epoll, &net_engine_poll, NULL};
#else
#include "platform/engines/accept.h"
static const net_engine_calls_t *const net_engines[] = {&net_engine_poll, NULL};
#endif

static inline const char *net_engine_name(int index) { return net_engines[index] ? net_engines[index]->name : NULL; }

/* With a name: that engine or none. Without: the first that can be opened; one that a container forbids is passed over
 * without a word, also by a limit of locked memory (ENOMEM). That there are no descriptors is told at once. */
static inline int net_engine_open(const char *name, const net_socket_t *listeners, int count, net_engine_t **engine)
{
    int n, error = NET_ENOTSUP;
    *engine = NULL;
    for (n = 0; net_engines[n]; n++) {
        if (name && strcmp(name, net_engines[n]->name) != 0)
            continue;
        error = net_engines[n]->open(listeners, count, engine);
        if (error == 0 || (net_overloaded(error) && error != NET_ENOMEM))
            break;
    }
    return error;
}

static inline void net_engine_close(net_engine_t *engine) { engine->calls->close(engine); }
static inline void net_engine_abandon(net_engine_t *engine) { engine->calls->abandon(engine); }
static inline void net_engine_recall(net_engine_t *engine, long how)
{
    if (engine->busy && net_get(&engine->recalled) < how)
        net_swap(&engine->recalled, how);
}
static inline void net_engine_stop(net_engine_t *engine)
{
    net_engine_recall(engine, NET_STOPPED);
    engine->calls->stop(engine);
}
static inline int net_engine_arm(net_engine_t *engine, int on)
{
    if (engine->armed == on || engine->stopped)
        return 0;
    net_engine_recall(engine, NET_RECALLED);
    return engine->calls->arm(engine, on);
}
static inline void net_engine_remove(net_engine_t *engine, int index)
{
    net_engine_recall(engine, NET_STOPPED);
    engine->calls->remove(engine, index);
}
static inline int net_engine_timer(net_engine_t *engine, int milliseconds)
{
    return engine->calls->timer(engine, milliseconds);
}
static inline void net_engine_wake(net_engine_t *engine) { engine->calls->wake(engine); }
static inline void net_engine_calm(net_engine_t *engine) { engine->calls->calm(engine); }
static inline int net_engine_fileno(net_engine_t *engine, net_socket_t *handle)
{
    *handle = NET_INVALID;
    return (engine->calls->fileno)(engine, handle); /* the parentheses: NetBSD has a macro of that name */
}
static inline int net_engine_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                  int *count)
{
    int error;
    net_swap(&engine->recalled, 0);
    net_swap(&engine->in_hand, 0);
    engine->asked = limit;
    error = engine->calls->take(engine, limit, nonblocking, taken, from, count);
    engine->asked = 0;
    return error;
}

/* The thread in take() does not come back from accept(): it is to do so after that, with what it has then. */
static inline void net_engine_hold_up(net_engine_t *engine)
{
    engine->held_up = 1;
    net_engine_recall(engine, NET_RECALLED);
}

/* How many connections threads that are inside without the lock may bring, at the most. */
static inline int net_engine_expected(net_engine_t *engine)
{
    long most = engine->asked;
    if (engine->held_up && net_get(&engine->in_hand) + 1 < most)
        most = net_get(&engine->in_hand) + 1;
    return (int)most + engine->beside;
}
static inline int net_engine_wait(net_engine_t *engine, int milliseconds, int *outcome)
{
    return engine->calls->wait(engine, milliseconds, outcome);
}

#endif
