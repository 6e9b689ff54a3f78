/* The engine "kqueue", for macOS and the BSDs: kevent() waits, accept() takes. The contract is in engine.h.
 *
 * Listeners are in the kqueue while armed, level-triggered. What was ready once stays in the kqueue's own queue, and
 * the kqueue readable, until kevent() has looked again, though its connection may be long taken. So take() ends with a
 * look, or a loop that polls the kqueue would spin.
 *
 * A timer fires once, for one thread, which then wakes all. It may go by another clock than net_monotonic(), as on
 * macOS. It must not fire early, for nobody would wake those who find that a pause is not over: it gets a little more
 * time, and is set again if that was not enough.
 *
 * A child of fork() has no kqueue: there its number is free, or a stranger's. */
#ifndef HARKEN_ENGINE_KQUEUE_H
#define HARKEN_ENGINE_KQUEUE_H

#include <stdint.h>
#include <sys/event.h>

#ifdef __NetBSD__
typedef size_t net_kqueue_count_t;
#else
typedef int net_kqueue_count_t;
#endif

enum { NET_KQUEUE_OTHER = -1, NET_KQUEUE_TIMER = 1, NET_KQUEUE_WAKE = 2 };

typedef struct {
    net_engine_t base;
    int set; /* the kqueue */
    long woken;
    double timer_at; /* on net_monotonic(); negative: never */
    net_turns_t turns;
    struct kevent *events; /* owned: room for all listeners, the timer and the wake-up */
#ifndef EVFILT_USER
    net_waker_t waker;
#endif
} net_kqueue_t;

/* `index` is the listener's, or NET_KQUEUE_OTHER. */
static inline struct kevent net_kqueue_event(int ident, int filter, int flags, unsigned fflags, int data, int index)
{
    struct kevent event;
    memset(&event, 0, sizeof event);
    event.ident = (__typeof__(event.ident))ident;
    event.filter = (__typeof__(event.filter))filter; /* the types are others on each system */
    event.flags = (__typeof__(event.flags))flags;
    event.fflags = (__typeof__(event.fflags))fflags;
    event.data = data;
    event.udata = (__typeof__(event.udata))(intptr_t)index;
    return event;
}

static inline int net_kqueue_change(int set, int ident, int filter, int flags, int data, int index)
{
    struct kevent change = net_kqueue_event(ident, filter, flags, 0, data, index);
    return kevent(set, &change, 1, NULL, 0, NULL) == 0 ? 0 : errno;
}

static inline int net_kqueue_watch_one(net_engine_t *engine, int index, int on)
{
    int set = ((net_kqueue_t *)engine)->set, listener = engine->listeners[index];
    if (on)
        return net_kqueue_change(set, listener, EVFILT_READ, EV_ADD, 0, index);
    (void)net_kqueue_change(set, listener, EVFILT_READ, EV_DELETE, 0, index);
    return 0;
}

static inline int net_kqueue_arm(net_engine_t *engine, int on)
{
    ((net_kqueue_t *)engine)->turns.count = 0;
    return net_engine_watch_all(engine, on, net_kqueue_watch_one);
}

/* ---------------------------------------------------------------- waking */

#ifdef EVFILT_USER
/* The event is there while we are woken: macOS cannot take a trigger back in another way. Two changes, for FreeBSD
 * passes over a trigger that comes with the event. */
static inline int net_kqueue_raise(net_kqueue_t *self)
{
    struct kevent changes[2];
    int error;
    changes[0] = net_kqueue_event(NET_KQUEUE_WAKE, EVFILT_USER, EV_ADD, 0, 0, NET_KQUEUE_OTHER);
    changes[1] = net_kqueue_event(NET_KQUEUE_WAKE, EVFILT_USER, 0, NOTE_TRIGGER, 0, NET_KQUEUE_OTHER);
    error = kevent(self->set, changes, 2, NULL, 0, NULL) == 0 ? 0 : errno;
    net_swap(&self->woken, 1); /* after it: a calm() in between leaves it to the next */
    return error;
}

static inline int net_kqueue_lower(net_kqueue_t *self)
{
    if (!net_swap(&self->woken, 0))
        return 0;
    (void)net_kqueue_change(self->set, NET_KQUEUE_WAKE, EVFILT_USER, EV_DELETE, 0, NET_KQUEUE_OTHER);
    return 1;
}

static inline int net_kqueue_open_waker(net_kqueue_t *self)
{
    int error = net_kqueue_raise(self);
    (void)net_kqueue_lower(self);
    return error;
}

static inline void net_kqueue_close_waker(net_kqueue_t *self) { (void)self; }
#else
static inline int net_kqueue_raise(net_kqueue_t *self)
{
    if (net_swap(&self->woken, 1) == 0)
        net_waker_pull(&self->waker);
    return 0;
}

static inline int net_kqueue_lower(net_kqueue_t *self)
{
    if (!net_get(&self->woken) || !net_waker_calm(&self->waker))
        return 0; /* or a wake() has still to pull: left for the next time */
    net_swap(&self->woken, 0); /* a wake() that came between the two is over, but its news is read after this */
    return 1;
}

static inline int net_kqueue_open_waker(net_kqueue_t *self)
{
    int error = net_waker_open(&self->waker);
    if (error == 0)
        error = net_kqueue_change(self->set, net_waker_handle(&self->waker), EVFILT_READ, EV_ADD, 0, NET_KQUEUE_OTHER);
    return error;
}

static inline void net_kqueue_close_waker(net_kqueue_t *self)
{
    if (net_waker_handle(&self->waker) >= 0)
        net_waker_close(&self->waker);
}
#endif

static inline void net_kqueue_wake(net_engine_t *engine) { (void)net_kqueue_raise((net_kqueue_t *)engine); }

static inline int net_kqueue_set_timer(net_kqueue_t *self, int milliseconds)
{
    /* Not every system resets one that is there. */
    (void)net_kqueue_change(self->set, NET_KQUEUE_TIMER, EVFILT_TIMER, EV_DELETE, 0, NET_KQUEUE_OTHER);
    if (milliseconds < 0)
        return 0;
    return net_kqueue_change(self->set, NET_KQUEUE_TIMER, EVFILT_TIMER, EV_ADD | EV_ONESHOT,
                             milliseconds + milliseconds / 128 + 1, NET_KQUEUE_OTHER);
}

static inline int net_kqueue_timer(net_engine_t *engine, int milliseconds)
{
    net_kqueue_t *self = (net_kqueue_t *)engine;
    int error;
    if (milliseconds < 0 && self->timer_at < 0)
        return 0;
    error = net_kqueue_set_timer(self, milliseconds);
    self->timer_at = milliseconds < 0 || error ? -1 : net_monotonic() + milliseconds / 1000.0;
    return error;
}

static inline void net_kqueue_calm(net_engine_t *engine)
{
    net_kqueue_t *self = (net_kqueue_t *)engine;
    double left;
    int woken;
    if (engine->stopped)
        return;
    woken = net_kqueue_lower(self);
    if (self->timer_at < 0)
        return;
    left = self->timer_at - net_monotonic();
    if (left <= 0)
        (void)net_kqueue_timer(engine, -1);
    else if (woken) /* perhaps by the timer, before its time */
        (void)net_kqueue_set_timer(self, (int)(left * 1000));
}

static inline void net_kqueue_stop(net_engine_t *engine)
{
    if (engine->armed)
        (void)net_kqueue_arm(engine, 0);
    engine->stopped = 1;
    net_kqueue_wake(engine);
}

static inline void net_kqueue_remove(net_engine_t *engine, int index)
{
    if (engine->listeners[index] == NET_INVALID)
        return;
    if (engine->armed)
        (void)net_kqueue_watch_one(engine, index, 0);
    engine->listeners[index] = NET_INVALID;
    engine->left--;
    ((net_kqueue_t *)engine)->turns.count = 0;
    net_kqueue_wake(engine);
}

/* ---------------------------------------------------------------- waiting and taking */

/* How many events there are, or -1. For ever without a time. */
static inline int net_kqueue_look(net_kqueue_t *self, struct kevent *events, int room, const struct timespec *time)
{
    int n, count = kevent(self->set, NULL, 0, events, (net_kqueue_count_t)room, time);
    for (n = 0; n < count; n++)
        if (events[n].filter == EVFILT_TIMER)
            net_kqueue_wake(&self->base);
    return count;
}

static inline int net_kqueue_index(const struct kevent *event) { return (int)(intptr_t)event->udata; }

static inline int net_kqueue_wait(net_engine_t *engine, int milliseconds, int *outcome)
{
    struct kevent events[4];
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    int n = net_kqueue_look((net_kqueue_t *)engine, events, 4, milliseconds < 0 ? NULL : &time);
    int error = n < 0 ? errno : 0;
    *outcome = n > 0 ? NET_WOKEN : NET_TIMED_OUT;
    while (n-- > 0)
        if (net_kqueue_index(&events[n]) != NET_KQUEUE_OTHER)
            *outcome = NET_READY;
    return error;
}

static inline int net_kqueue_ask(net_engine_t *engine, int *said, int *count)
{
    net_kqueue_t *self = (net_kqueue_t *)engine;
    static const struct timespec now = {0, 0};
    int n, found = net_kqueue_look(self, self->events, engine->count + 2, &now);
    if (found < 0)
        return errno;
    for (n = 0; n < found; n++)
        if (net_kqueue_index(&self->events[n]) != NET_KQUEUE_OTHER)
            said[(*count)++] = net_kqueue_index(&self->events[n]);
    return 0;
}

static inline int net_kqueue_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                  int *count)
{
    net_kqueue_t *self = (net_kqueue_t *)engine;
    static const struct timespec now = {0, 0};
    int error;
    *count = 0;
    if (engine->stopped) {
        engine->full = 0;
        return NET_EWOULDBLOCK;
    }
    if ((error = net_engine_look(engine, &self->turns, net_kqueue_ask)) != 0)
        return error;
    error = net_engine_share(net_engine_part, engine, limit, nonblocking, self->turns.ready, &self->turns.count, taken,
                             from, count);
    if (engine->armed) /* one that is ready is enough to know; before it, all that are not any more leave the queue */
        (void)net_kqueue_look(self, self->events, 1, &now);
    return error;
}

static inline int net_kqueue_fileno(net_engine_t *engine, net_socket_t *handle)
{
    *handle = ((net_kqueue_t *)engine)->set;
    return 0;
}

static inline void net_kqueue_abandon(net_engine_t *engine)
{
    net_kqueue_t *self = (net_kqueue_t *)engine;
    net_kqueue_close_waker(self);
    free(self->turns.ready);
    free(self->events);
    net_engine_free(engine);
}

static inline void net_kqueue_close(net_engine_t *engine)
{
    if (((net_kqueue_t *)engine)->set >= 0)
        close(((net_kqueue_t *)engine)->set);
    net_kqueue_abandon(engine);
}

static inline int net_kqueue_open(const net_socket_t *listeners, int count, net_engine_t **engine);

static const net_engine_calls_t net_engine_kqueue = {
    "kqueue",          net_kqueue_open,   net_kqueue_close, net_kqueue_abandon, net_kqueue_stop,
    net_kqueue_arm,    net_kqueue_remove, net_kqueue_timer, net_kqueue_wake,    net_kqueue_calm,
    net_kqueue_fileno, net_kqueue_take,   net_kqueue_wait,
};

static inline int net_kqueue_open(const net_socket_t *listeners, int count, net_engine_t **engine)
{
    net_kqueue_t *self;
    int error = net_engine_make(&net_engine_kqueue, sizeof *self, listeners, count, engine);
    if (error)
        return error;
    self = (net_kqueue_t *)*engine;
    self->timer_at = -1;
#ifndef EVFILT_USER
    net_waker_none(&self->waker);
#endif
    self->events = (struct kevent *)malloc(((size_t)count + 2) * sizeof *self->events);
    self->set = kqueue();
    if (self->set < 0)
        error = errno;
    else if (net_turns_make(&self->turns, count) != 0 || self->events == NULL)
        error = ENOMEM;
    else if ((error = net_inheritable(self->set, 0)) == 0) /* for exec(); a fork in between does not have it */
        error = net_kqueue_open_waker(self);
    if (error) {
        net_kqueue_close(*engine);
        *engine = NULL;
    }
    return error;
}

#endif
