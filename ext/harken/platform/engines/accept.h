/* The engine "accept": poll() and accept(), WSAPoll() on Windows: what works everywhere. The contract is in engine.h.
 *
 * A thread in poll() watches what was armed when it began. So whatever changes the list wakes all of them, and the waker
 * stays pulled until the last of those that were in poll() at that moment has left it. */
#ifndef HARKEN_ENGINE_ACCEPT_H
#define HARKEN_ENGINE_ACCEPT_H

typedef struct {
    net_engine_t base;
    net_lock_t lock; /* over all that follows */
    net_waker_t waker;
    int has_waker;
    int woken;       /* the waker is pulled */
    int waiters;     /* threads in wait() */
    int stale;       /* those that were there at the last wake() */
    unsigned wakes;  /* how many there were */
    double timer_at; /* on net_monotonic(); negative: never */
    int *ready;      /* owned: room for all listeners; of take() */
} net_polling_t;

static inline void net_poll_close(net_engine_t *engine)
{
    net_polling_t *self = (net_polling_t *)engine;
    if (self->has_waker)
        net_waker_close(&self->waker);
    free(self->ready);
    net_engine_free(engine);
}

static inline void net_poll_wake_locked(net_polling_t *self)
{
    if (!self->woken)
        net_waker_pull(&self->waker);
    self->woken = 1;
    self->stale = self->waiters;
    self->wakes++;
}

static inline void net_poll_wake(net_engine_t *engine)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    net_poll_wake_locked(self);
    net_unlock(&self->lock);
}

static inline void net_poll_calm(net_engine_t *engine)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    if (!engine->stopped && self->woken && self->stale == 0) {
        net_waker_calm(&self->waker);
        self->woken = 0;
    }
    if (self->timer_at >= 0 && self->timer_at <= net_monotonic())
        self->timer_at = -1;
    net_unlock(&self->lock);
}

static inline int net_poll_arm(net_engine_t *engine, int on)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    engine->armed = on;
    if (self->waiters)
        net_poll_wake_locked(self);
    net_unlock(&self->lock);
    return 0;
}

static inline void net_poll_stop(net_engine_t *engine)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    engine->armed = 0;
    engine->stopped = 1;
    net_poll_wake_locked(self);
    net_unlock(&self->lock);
}

/* Winsock forbids to close a socket that somebody polls: nobody does when this returns. */
static inline void net_poll_remove(net_engine_t *engine, int index)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    if (engine->listeners[index] != NET_INVALID) {
        engine->listeners[index] = NET_INVALID;
        engine->left--;
        net_poll_wake_locked(self);
        while (self->stale > 0) {
            net_unlock(&self->lock);
            net_yield();
            net_lock(&self->lock);
        }
    }
    net_unlock(&self->lock);
}

static inline int net_poll_timer(net_engine_t *engine, int milliseconds)
{
    net_polling_t *self = (net_polling_t *)engine;
    net_lock(&self->lock);
    self->timer_at = milliseconds < 0 ? -1 : net_monotonic() + milliseconds / 1000.0;
    if (self->waiters && milliseconds >= 0)
        net_poll_wake_locked(self);
    net_unlock(&self->lock);
    return 0;
}

static inline int net_poll_fileno(net_engine_t *engine, net_socket_t *handle)
{
    (void)engine;
    *handle = NET_INVALID;
    return NET_ENOTSUP;
}

static inline int net_poll_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                int *count)
{
    net_polling_t *self = (net_polling_t *)engine;
    int found;
    *count = 0;
    engine->full = 0;
    if (engine->stopped)
        return NET_EWOULDBLOCK;
    found = net_engine_turn(engine, self->ready);
    return net_engine_share(net_engine_part, engine, limit, nonblocking, self->ready, &found, taken, from, count);
}

static inline int net_poll_wait(net_engine_t *engine, int milliseconds, int *outcome)
{
    enum { FEW = 64 };
    net_polling_t *self = (net_polling_t *)engine;
    net_pollfd_t few[FEW + 1], *on = few;
    unsigned wakes;
    int n, result, error, found = 1, over = 0;
    double left;
    *outcome = NET_TIMED_OUT;
    if (engine->count > FEW && (on = (net_pollfd_t *)malloc(((size_t)engine->count + 1) * sizeof *on)) == NULL)
        return NET_ENOMEM;
    net_lock(&self->lock);
    on[0].fd = net_waker_handle(&self->waker);
    on[0].events = POLLIN;
    on[0].revents = 0;
    for (n = 0; n < engine->count && engine->armed; n++) {
        if (engine->listeners[n] == NET_INVALID)
            continue;
        on[found].fd = engine->listeners[n];
        on[found].events = POLLIN;
        on[found++].revents = 0;
    }
    if (self->timer_at >= 0) {
        left = (self->timer_at - net_monotonic()) * 1000 + 1;
        n = left < 0 ? 0 : left > 1e9 ? 1000000000 : (int)left;
        if (milliseconds < 0 || n <= milliseconds) {
            milliseconds = n;
            over = 1;
        }
    }
    self->waiters++;
    wakes = self->wakes;
    net_unlock(&self->lock);

    result = net_poll(on, found, milliseconds);
    error = result < 0 ? net_last_error() : 0;

    net_lock(&self->lock);
    self->waiters--;
    if (wakes != self->wakes)
        self->stale--;
    net_unlock(&self->lock);
    if (result > 0)
        *outcome = result == 1 && on[0].revents ? NET_WOKEN : NET_READY;
    else if (result == 0 && over)
        *outcome = NET_WOKEN;
    if (on != few)
        free(on);
    return error;
}

static inline int net_poll_open(const net_socket_t *listeners, int count, net_engine_t **engine);

static const net_engine_calls_t net_engine_poll = {
    "accept",       net_poll_open, net_poll_close, net_poll_close,  net_poll_stop, net_poll_arm, net_poll_remove,
    net_poll_timer, net_poll_wake, net_poll_calm,  net_poll_fileno, net_poll_take, net_poll_wait,
};

static inline int net_poll_open(const net_socket_t *listeners, int count, net_engine_t **engine)
{
    net_polling_t *self;
    int error = net_engine_make(&net_engine_poll, sizeof *self, listeners, count, engine);
    if (error)
        return error;
    self = (net_polling_t *)*engine;
    net_lock_init(&self->lock);
    self->timer_at = -1;
    self->ready = (int *)malloc((size_t)count * sizeof *self->ready);
    error = self->ready == NULL ? NET_ENOMEM : net_waker_open(&self->waker);
    if (error) {
        net_poll_close(*engine);
        *engine = NULL;
        return error;
    }
    self->has_waker = 1;
    return 0;
}

#endif
