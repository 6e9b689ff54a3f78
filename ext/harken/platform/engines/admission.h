/* How many connections are admitted: the limit of open ones, pauses, overload, and what is counted. Stands between an
 * engine and whoever accepts with it; nothing here needs Python. Tested alone by tests/admission.c.
 *
 * Connections stay in the kernel's queue while there is a reason (`reasons`) to accept none of them:
 *   NET_BY_USER   the caller said so, until he says otherwise
 *   NET_FULL      `limit` connections are open, until only `low` are
 *   NET_STARVED   there were no descriptors or no memory: for 10 ms, then 20, up to a second; or until one of these
 *                 connections is closed
 *
 * `lock` is over the engine (all of its calls but wait and wake) and over what stands behind it in the struct. It is held
 * for a few system calls that cannot wait, and whoever has it never waits for the GIL, so it may be waited for with the
 * GIL. accept(2) may wait, when somebody who shares the listener has made it block: the engine gives the lock up for that
 * (`busy` in engine.h), and whoever wants to accept meanwhile waits a moment and gets what he can beside.
 *
 * What stands before the lock is shared with connections, which are closed by any thread, and is read and written by
 * net_add() and its like. Each connection has a reference to the struct, the acceptor has one more.
 *
 * Forks. The child of a fork must not touch the parent's engine: the functions that connections call do nothing where
 * `forks` is not that of this process, and a lock that a thread of the parent may have had is made anew. */
#ifndef HARKEN_ADMISSION_H
#define HARKEN_ADMISSION_H

#include "platform/engines/engine.h"

enum { NET_BY_USER = 1, NET_FULL = 2, NET_STARVED = 4 };

/* What kept net_admission_take() from the first connection, beside the error number: overload, or one listener. */
enum { NET_NO_OBSTACLE = 0, NET_OVERLOAD = 1, NET_LISTENER = 2 };

enum {
    NET_FIRST_PAUSE = 10, /* milliseconds, when descriptors have run out; doubled each time, until */
    NET_LONGEST_PAUSE = 1000,
    NET_YIELDS = 50, /* how often whoever waits for a thread in accept(2) yields, before he */
    NET_DOZES = 20   /* sleeps for a millisecond, so often */
};

typedef struct {
    unsigned (*forks_now)(void); /* net_forks() of this process, wherever it is counted */
    long references;
    long open;    /* connections that are open, or were given away and not released */
    long given;   /* those of `open` that were given away */
    long closed;  /* connections that were closed, ever: has room been made since? */
    long full;    /* 1: whoever brings `open` down to `low` wakes the engine */
    long starved; /* 1: whoever closes a connection wakes it */
    long ended;   /* no listeners are left */
    long low;
    long owed;      /* the acceptor's own: listeners that were closed while threads were in accept(2) on them */
    unsigned forks; /* names the process whose engine this is */
    long locked_in; /* names the process that has made `lock`; negative: that is about to */
    net_lock_t lock;
    net_engine_t *engine; /* owned by the acceptor; NULL when closed */
    int limit;            /* 0: none */
    int batch;            /* how many are shed at once */
    int sheds;            /* overload: 1: connections are accepted and closed, if there is a descriptor for it */
    int shared;           /* other processes accept from a listener, too, as far as we know */
    int greedy;           /* shared, and the last batch was full: others first */
    int reasons;
    int delay;     /* milliseconds of the last pause; 0: none since a success */
    double until;  /* when that pause is over */
    double since;  /* when it was that `reasons` became more than NET_BY_USER */
    double paused; /* seconds, but for the pause that lasts */
    unsigned long long accepted, shed, pauses;
    long high_water;
    net_socket_t reserve;         /* owned: a descriptor for shedding, and for files that an error has to open */
    net_failures_t failed_before; /* by engines that a fork left behind */
} net_admission_t;

static inline net_admission_t *net_admission_new(unsigned (*forks_now)(void))
{
    net_admission_t *made = (net_admission_t *)calloc(1, sizeof *made);
    if (made == NULL)
        return NULL;
    made->forks_now = forks_now;
    made->references = 1;
    made->forks = forks_now();
    made->reserve = NET_INVALID;
    return made;
}

static inline void net_admission_unreference(net_admission_t *self, long count)
{
    if (net_add(&self->references, -count) == 0)
        free(self);
}

/* An eighth of a small limit is nothing: then there must be room for one. */
static inline void net_admission_set_limit(net_admission_t *self, int limit)
{
    self->limit = limit;
    self->low = limit - 1 < limit - limit / 8 ? limit - 1 : limit - limit / 8;
}

static inline void net_admission_lock(net_admission_t *self)
{
    long here = (long)self->forks_now() + 1, seen;
    while (net_get(&self->locked_in) != here) {
        seen = net_swap(&self->locked_in, -here);
        if (seen == here) { /* another thread has just made it, and may have it */
            net_swap(&self->locked_in, here);
        } else if (seen == -here) {
            net_yield();
        } else {
            net_lock_init(&self->lock);
            net_swap(&self->locked_in, here);
        }
    }
    net_lock(&self->lock);
}

static inline void net_admission_unlock(net_admission_t *self) { net_unlock(&self->lock); }

/* ------------------------------------------------------------------ by connections, without the lock */

static inline void net_admission_wake(net_admission_t *self)
{
    if (self->forks != self->forks_now())
        return; /* the parent's; the first use in this process looks by itself */
    net_admission_lock(self);
    if (self->engine != NULL)
        net_engine_wake(self->engine);
    net_admission_unlock(self);
}

/* So many connections were closed. */
static inline void net_admission_count_down(net_admission_t *self, long count)
{
    long left = net_add(&self->open, -count);
    int wanted = 0;
    net_add(&self->closed, count);
    if (net_get(&self->starved) && net_swap(&self->starved, 0))
        wanted = 1;
    if (left <= self->low && net_get(&self->full) && net_swap(&self->full, 0))
        wanted = 1;
    if (wanted)
        net_admission_wake(self);
}

/* ------------------------------------------------------------------ with the lock */

static inline void net_admission_stop(net_admission_t *self)
{
    net_swap(&self->ended, 1);
    net_engine_stop(self->engine);
}

/* No connections from this listener any more. */
static inline void net_admission_forget(net_admission_t *self, int index)
{
    net_engine_remove(self->engine, index);
    if (self->engine->left == 0)
        net_admission_stop(self);
}

/* The engine belongs to this from now on. */
static inline void net_admission_use(net_admission_t *self, net_engine_t *engine)
{
    engine->lock = &self->lock;
    self->engine = engine;
    if (engine->left == 0)
        net_admission_stop(self);
}

static inline void net_admission_make_reserve(net_admission_t *self)
{
    if (self->reserve == NET_INVALID)
        (void)net_socket(AF_INET, SOCK_STREAM, 0, &self->reserve);
}

static inline void net_admission_drop_reserve(net_admission_t *self)
{
    if (self->reserve != NET_INVALID)
        net_close(self->reserve);
    self->reserve = NET_INVALID;
}

/* For how many connections there is room. */
static inline int net_admission_room(net_admission_t *self)
{
    long room;
    if (self->limit == 0)
        return NET_ROOM_FOR_ALL;
    room = self->limit - net_get(&self->open);
    return room > 0 ? (int)room : 0;
}

static inline void net_admission_pause_for(net_admission_t *self, int reason)
{
    if (!(self->reasons & (NET_FULL | NET_STARVED))) {
        self->since = net_monotonic();
        self->pauses++;
    }
    self->reasons |= reason;
    (void)net_engine_arm(self->engine, 0);
}

/* The reason is no more; the listeners are armed by net_admission_settle(). */
static inline void net_admission_over(net_admission_t *self, int reason)
{
    if (!(self->reasons & reason))
        return;
    self->reasons &= ~reason;
    if (!(self->reasons & (NET_FULL | NET_STARVED)))
        self->paused += net_monotonic() - self->since;
}

/* The limit is reached. */
static inline void net_admission_fill_up(net_admission_t *self)
{
    net_admission_pause_for(self, NET_FULL);
    net_swap(&self->full, 1);
    if (net_get(&self->open) <= self->low)
        net_engine_wake(self->engine); /* they were closed meanwhile, and nobody saw that we wait for it */
}

/* There are no descriptors, or no memory. `closed`: how many connections were closed before the attempt. */
static inline void net_admission_starve(net_admission_t *self, long closed)
{
    self->delay = self->delay == 0 ? NET_FIRST_PAUSE : 2 * self->delay;
    if (self->delay > NET_LONGEST_PAUSE)
        self->delay = NET_LONGEST_PAUSE;
    net_admission_pause_for(self, NET_STARVED);
    self->until = net_monotonic() + self->delay / 1000.0;
    net_swap(&self->starved, 1);
    if (net_get(&self->closed) != closed) {
        net_swap(&self->starved, 0); /* room was made meanwhile */
        net_engine_wake(self->engine);
    } else {
        (void)net_engine_timer(self->engine, self->delay);
    }
}

/* Ends the pauses that are over. */
static inline int net_admission_settle(net_admission_t *self)
{
    int error;
    if (self->reasons & NET_FULL && net_get(&self->open) <= self->low) {
        net_swap(&self->full, 0);
        net_admission_over(self, NET_FULL);
    }
    if (self->reasons & NET_STARVED && (!net_get(&self->starved) || net_monotonic() >= self->until)) {
        net_swap(&self->starved, 0);
        (void)net_engine_timer(self->engine, -1);
        net_admission_over(self, NET_STARVED);
    }
    if (self->reasons)
        return 0;
    self->engine->room = net_admission_room(self);
    error = net_engine_arm(self->engine, 1);
    if (error)
        net_admission_starve(self, net_get(&self->closed));
    return error;
}

/* Accepts and closes, a batch at the most, with the descriptor in reserve. Tells how many. */
static inline int net_admission_shed(net_admission_t *self)
{
    net_socket_t taken;
    int from, count, done = 0, error = 0;
    while (done < self->batch && error == 0 && self->reserve != NET_INVALID && !self->engine->stopped) {
        taken = self->reserve;
        self->reserve = NET_INVALID; /* first, for take() gives the lock up */
        net_close(taken);
        error = net_engine_take(self->engine, 1, 1, &taken, &from, &count);
        if (count) {
            net_close(taken);
            done++;
        }
        net_admission_make_reserve(self);
    }
    self->shed += (unsigned)done;
    return done;
}

static inline void net_admission_counted(net_admission_t *self, int taken)
{
    long open;
    if (taken == 0)
        return;
    self->accepted += (unsigned)taken;
    open = net_add(&self->open, taken);
    net_add(&self->references, taken);
    if (open > self->high_water)
        self->high_water = open;
    if (self->limit && open >= self->limit)
        net_admission_fill_up(self);
}

/* One batch. The error is what stood in the way of the first connection. */
static inline int net_admission_batch(net_admission_t *self, int wished, int nonblocking, net_socket_t *taken, int *from,
                                      int *count, int *obstacle)
{
    net_engine_t *engine = self->engine;
    int error, listening = 0;
    long closed;
    net_engine_calm(engine);
    error = net_admission_settle(self);
    if (error) {
        *obstacle = NET_OVERLOAD;
        return error;
    }
    if (!engine->stopped) {
        if (self->reasons)
            return NET_EWOULDBLOCK;
        if (wished > engine->room - engine->beside)
            wished = engine->room - engine->beside;
        if (wished < 1) {
            if (!engine->beside)
                net_admission_fill_up(self);
            return NET_EWOULDBLOCK;
        }
        net_admission_make_reserve(self);
    }
    closed = net_get(&self->closed);
    error = net_engine_take(engine, wished, nonblocking, taken, from, count);
    self->greedy = self->shared && engine->full;
    if (*count) {
        self->delay = 0;
        net_admission_counted(self, *count);
        /* An engine that takes connections ahead has used up the room that there was before it began. Connections that
         * were closed meanwhile woke nobody, for the limit was not reached. Whoever looks next tells it of the room. */
        if (engine->room < 1 && !(self->reasons & NET_FULL))
            net_engine_wake(engine);
        return 0;
    }
    if (error == NET_EWOULDBLOCK || error == NET_EINTR)
        return error;
    if (engine->culprit >= 0 &&
        !(net_listening(engine->listeners[engine->culprit], &listening) == 0 && listening)) {
        net_admission_forget(self, engine->culprit);
        *obstacle = NET_LISTENER;
        return error;
    }
    /* No descriptors, no memory; or an unknown error from a listener that is well: back off. */
    *obstacle = NET_OVERLOAD;
    net_failures_count(&engine->failures, error, 1);
    if (!(self->sheds && net_admission_shed(self)))
        net_admission_starve(self, closed);
    return error;
}

/* While another thread is held up, who may still get one connection: of those that come now it is we who are told, not
 * he. */
static inline int net_admission_beside(net_admission_t *self, int wished, int nonblocking, net_socket_t *taken,
                                       int *from, int *count)
{
    net_engine_t *engine = self->engine;
    int error, room = net_admission_room(self) - net_engine_expected(engine);
    if (wished > room)
        wished = room;
    if (self->reasons || wished < 1)
        return NET_EWOULDBLOCK;
    engine->beside += wished; /* theirs and ours together are never more than there is room for */
    error = net_engine_take_beside(engine, wished, nonblocking, taken, from, count);
    engine->beside -= wished;
    net_admission_counted(self, *count);
    return error;
}

/* The lock is given up meanwhile: until nobody else accepts. 0 where that takes long, for that one may be held up; and
 * without an engine. */
static inline int net_admission_turn(net_admission_t *self)
{
    int tries = 0;
    while (self->engine != NULL && self->engine->busy) {
        if (tries == NET_YIELDS + NET_DOZES)
            net_engine_hold_up(self->engine);
        if (self->engine->held_up)
            return 0;
        net_admission_unlock(self);
        if (tries++ < NET_YIELDS)
            net_yield();
        else
            net_pause(1);
        net_admission_lock(self);
    }
    return self->engine != NULL;
}

/* ------------------------------------------------------------------ without the lock */

/* Up to `wished` connections, which count as open from now on. NET_EBADF without an engine. */
static inline int net_admission_take(net_admission_t *self, int wished, int nonblocking, net_socket_t *taken, int *from,
                                     int *count, int *obstacle)
{
    int error = NET_EBADF;
    *count = 0;
    *obstacle = NET_NO_OBSTACLE;
    net_admission_lock(self);
    if (net_admission_turn(self))
        error = net_admission_batch(self, wished, nonblocking, taken, from, count, obstacle);
    else if (self->engine != NULL)
        error = net_admission_beside(self, wished, nonblocking, taken, from, count);
    net_admission_unlock(self);
    return error;
}

/* After a wake-up: ends the pauses that are over. */
static inline int net_admission_refresh(net_admission_t *self)
{
    int error = 0;
    net_admission_lock(self);
    if (self->engine != NULL) {
        net_engine_calm(self->engine);
        error = net_admission_settle(self);
    }
    net_admission_unlock(self);
    return error;
}

/* Until net_admission_resume(). 1: a thread accepts meanwhile, for which net_admission_wait_for_turn() waits, unless it is
 * held up. */
static inline int net_admission_pause(net_admission_t *self)
{
    int busy = 0;
    net_admission_lock(self);
    if (self->engine != NULL) {
        self->reasons |= NET_BY_USER;
        (void)net_engine_arm(self->engine, 0);
        busy = self->engine->busy != 0;
    }
    net_admission_unlock(self);
    return busy;
}

static inline void net_admission_wait_for_turn(net_admission_t *self)
{
    net_admission_lock(self);
    (void)net_admission_turn(self);
    net_admission_unlock(self);
}

static inline int net_admission_resume(net_admission_t *self)
{
    int error = 0;
    net_admission_lock(self);
    if (self->engine != NULL && self->reasons & NET_BY_USER) {
        self->reasons &= ~NET_BY_USER;
        error = net_admission_settle(self);
    }
    net_admission_unlock(self);
    return error;
}

/* What is to be done about an overload that has begun: shed now, or pause for other seconds than it would. */
static inline void net_admission_shed_now(net_admission_t *self)
{
    net_admission_lock(self);
    if (net_admission_turn(self) && self->reasons & NET_STARVED && net_admission_shed(self)) {
        net_swap(&self->starved, 0);
        (void)net_admission_settle(self);
    }
    net_admission_unlock(self);
}

static inline void net_admission_pause_longer(net_admission_t *self, double seconds)
{
    int milliseconds;
    seconds = seconds < 0.001 ? 0.001 : seconds > 1e6 ? 1e6 : seconds;
    milliseconds = (int)(seconds * 1000);
    milliseconds += milliseconds < seconds * 1000;
    net_admission_lock(self);
    if (net_admission_turn(self) && self->reasons & NET_STARVED && net_get(&self->starved)) {
        self->until = net_monotonic() + seconds;
        (void)net_engine_timer(self->engine, milliseconds);
    }
    net_admission_unlock(self);
}

/* A connection was given away open: it counts until it is released. */
static inline void net_admission_give(net_admission_t *self)
{
    net_add(&self->given, 1);
    net_admission_unreference(self, 1);
}

/* So many of those that were given away are closed. Negative where there were not so many: nothing has changed. */
static inline long net_admission_release(net_admission_t *self, long count)
{
    long left = net_add(&self->given, -count);
    if (left < 0)
        net_add(&self->given, count);
    else
        net_admission_count_down(self, count);
    return left;
}

/* ------------------------------------------------------------------ the end, and forks */

/* With the lock: in a child of a fork, the parent's engine. */
static inline void net_admission_abandon(net_admission_t *self)
{
    net_failures_add(&self->failed_before, &self->engine->failures);
    net_engine_abandon(self->engine);
    self->engine = NULL;
    self->forks = self->forks_now();
}

/* With the lock: in a child of a fork that goes on with an engine of its own, `engine`. */
static inline void net_admission_begin_again(net_admission_t *self, net_engine_t *engine)
{
    net_admission_abandon(self);
    net_admission_over(self, NET_FULL | NET_STARVED);
    self->full = self->starved = 0;
    self->shared = 1;
    net_admission_use(self, engine);
}

/* The engine, which is the caller's to close. NULL: there is none any more. */
static inline net_engine_t *net_admission_finish(net_admission_t *self)
{
    net_engine_t *engine;
    net_admission_lock(self);
    engine = self->engine;
    if (engine != NULL) {
        net_admission_over(self, NET_FULL | NET_STARVED);
        net_failures_add(&self->failed_before, &engine->failures);
    }
    self->engine = NULL;
    net_admission_unlock(self);
    return engine;
}

/* What was counted so far, in a copy of the struct. */
static inline void net_admission_totals(net_admission_t *self, net_admission_t *totals)
{
    net_admission_lock(self);
    memset(totals, 0, sizeof *totals);
    totals->failed_before = self->failed_before;
    if (self->engine != NULL)
        net_failures_add(&totals->failed_before, &self->engine->failures);
    totals->paused = self->paused;
    if (self->reasons & (NET_FULL | NET_STARVED))
        totals->paused += net_monotonic() - self->since;
    totals->accepted = self->accepted;
    totals->shed = self->shed;
    totals->pauses = self->pauses;
    totals->high_water = self->high_water;
    totals->open = net_get(&self->open);
    net_admission_unlock(self);
}

#endif
