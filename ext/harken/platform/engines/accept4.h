/* The engine "accept4": epoll and accept4(), for Linux. The contract is in engine.h.
 *
 * Listeners are in the epoll set while armed. EPOLLEXCLUSIVE: of the processes that share a listener and sleep in
 * epoll_wait(), one connection wakes one, or a few. The kernel wakes the one that came first into the listener's list,
 * again and again; who has taken his share goes to its end, by EPOLL_CTL_DEL and ADD. */
#ifndef HARKEN_ENGINE_ACCEPT4_H
#define HARKEN_ENGINE_ACCEPT4_H

#include <sys/epoll.h>
#include <sys/timerfd.h>

#ifndef EPOLLEXCLUSIVE
#define EPOLLEXCLUSIVE (1u << 28)
#endif

enum { NET_EPOLL_SHARE = 64 }; /* so many connections, or a full batch, and others are woken before us */
#define NET_EPOLL_WAKER 0xFFFFFFFFu
#define NET_EPOLL_TIMER 0xFFFFFFFEu

typedef struct {
    net_engine_t base;
    int set; /* the epoll descriptor */
    int timer;
    net_waker_t waker;
    long woken; /* 1: the waker is pulled, or will be at once */
    int timer_set;
    int share; /* connections taken since we last went to the end of the listeners' lists */
    net_turns_t turns;
    struct epoll_event *events; /* owned: room for all listeners, the waker and the timer */
} net_epoll_t;

static inline int net_epoll_watch(int set, int handle, uint32_t events, uint32_t name)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.u32 = name;
    if (epoll_ctl(set, EPOLL_CTL_ADD, handle, &event) == 0 || errno == EEXIST)
        return 0;
    if (errno == EINVAL && events & EPOLLEXCLUSIVE) /* before Linux 4.5 */
        return net_epoll_watch(set, handle, events & ~(uint32_t)EPOLLEXCLUSIVE, name);
    return errno;
}

static inline void net_epoll_forget(int set, int handle)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    (void)epoll_ctl(set, EPOLL_CTL_DEL, handle, &event);
}

/* In a child of fork() this is all: nothing but copies of descriptors is closed. */
static inline void net_epoll_close(net_engine_t *engine)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    if (self->set >= 0)
        close(self->set);
    if (self->timer >= 0)
        close(self->timer);
    if (net_waker_handle(&self->waker) >= 0)
        net_waker_close(&self->waker);
    free(self->turns.ready);
    free(self->events);
    net_engine_free(engine);
}

static inline int net_epoll_open(const net_socket_t *listeners, int count, net_engine_t **engine);

static inline int net_epoll_watch_one(net_engine_t *engine, int index, int on)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    if (on)
        return net_epoll_watch(self->set, engine->listeners[index], EPOLLIN | EPOLLEXCLUSIVE, (uint32_t)index);
    net_epoll_forget(self->set, engine->listeners[index]);
    return 0;
}

static inline int net_epoll_arm(net_engine_t *engine, int on)
{
    ((net_epoll_t *)engine)->turns.count = 0;
    return net_engine_watch_all(engine, on, net_epoll_watch_one);
}

static inline void net_epoll_wake(net_engine_t *engine)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    if (net_swap(&self->woken, 1) == 0)
        net_waker_pull(&self->waker);
}

static inline void net_epoll_calm(net_engine_t *engine)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    uint64_t times;
    if (engine->stopped)
        return;
    /* In this order: a wake() that comes between the two is over, but its news is read after this. One that has still to
     * pull is left for the next time. */
    if (net_get(&self->woken) && net_waker_calm(&self->waker))
        net_swap(&self->woken, 0);
    if (self->timer_set && read(self->timer, &times, sizeof times) > 0)
        self->timer_set = 0;
}

static inline void net_epoll_stop(net_engine_t *engine)
{
    if (engine->armed)
        (void)net_epoll_arm(engine, 0);
    engine->stopped = 1;
    net_epoll_wake(engine);
}

static inline void net_epoll_remove(net_engine_t *engine, int index)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    if (engine->listeners[index] == NET_INVALID)
        return;
    if (engine->armed)
        net_epoll_forget(self->set, engine->listeners[index]);
    engine->listeners[index] = NET_INVALID;
    engine->left--;
    self->turns.count = 0;
    net_epoll_wake(engine);
}

static inline int net_epoll_timer(net_engine_t *engine, int milliseconds)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    struct itimerspec when;
    if (milliseconds < 0 && !self->timer_set)
        return 0;
    memset(&when, 0, sizeof when);
    if (milliseconds >= 0) {
        when.it_value.tv_sec = milliseconds / 1000;
        when.it_value.tv_nsec = milliseconds % 1000 * 1000000L + (milliseconds == 0);
    }
    if (timerfd_settime(self->timer, 0, &when, NULL) != 0)
        return errno;
    self->timer_set = milliseconds >= 0;
    return 0;
}

static inline int net_epoll_fileno(net_engine_t *engine, net_socket_t *handle)
{
    *handle = ((net_epoll_t *)engine)->set;
    return 0;
}

static inline int net_epoll_ask(net_engine_t *engine, int *said, int *count)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    int n, found = epoll_wait(self->set, self->events, engine->count + 2, 0);
    if (found < 0)
        return errno;
    for (n = 0; n < found; n++)
        if (self->events[n].data.u32 < (uint32_t)engine->count)
            said[(*count)++] = (int)self->events[n].data.u32;
    return 0;
}

static inline int net_epoll_take_by(net_engine_part_t take_part, net_engine_t *engine, int limit, int nonblocking,
                                    net_socket_t *taken, int *from, int *count)
{
    net_epoll_t *self = (net_epoll_t *)engine;
    int n, error;
    *count = 0;
    if (engine->stopped) {
        engine->full = 0;
        return NET_EWOULDBLOCK;
    }
    if ((error = net_engine_look(engine, &self->turns, net_epoll_ask)) != 0)
        return error;
    error = net_engine_share(take_part, engine, limit, nonblocking, self->turns.ready, &self->turns.count, taken,
                             from, count);
    self->share += *count;
    if (engine->full) {
        self->share += NET_EPOLL_SHARE;
    } else if (self->share >= NET_EPOLL_SHARE && engine->armed) {
        /* Nothing waits now: the next connection is for somebody else, if he sleeps. */
        self->share = 0;
        for (n = 0; n < engine->count && error != NET_EBADF; n++) {
            if (engine->listeners[n] == NET_INVALID)
                continue;
            net_epoll_forget(self->set, engine->listeners[n]);
            if (net_epoll_watch(self->set, engine->listeners[n], EPOLLIN | EPOLLEXCLUSIVE, (uint32_t)n) != 0)
                (void)net_epoll_arm(engine, 0); /* whoever finds us disarmed tries again */
            if (!engine->armed)
                break;
        }
    }
    return error;
}

static inline int net_epoll_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from,
                                 int *count)
{
    return net_epoll_take_by(net_engine_part, engine, limit, nonblocking, taken, from, count);
}

static inline int net_epoll_wait(net_engine_t *engine, int milliseconds, int *outcome)
{
    struct epoll_event events[4];
    int n = epoll_wait(((net_epoll_t *)engine)->set, events, 4, milliseconds), error = n < 0 ? errno : 0;
    *outcome = n > 0 ? NET_WOKEN : NET_TIMED_OUT;
    while (n-- > 0)
        if (events[n].data.u32 < NET_EPOLL_TIMER)
            *outcome = NET_READY;
    return error;
}

static const net_engine_calls_t net_engine_epoll = {
    "accept4",       net_epoll_open, net_epoll_close, net_epoll_close,  net_epoll_stop, net_epoll_arm, net_epoll_remove,
    net_epoll_timer, net_epoll_wake, net_epoll_calm,  net_epoll_fileno, net_epoll_take, net_epoll_wait,
};

/* All that an engine needs for waiting. `size` is that of its own struct, whose first member is a net_epoll_t. */
static inline int net_epoll_make(const net_engine_calls_t *calls, size_t size, const net_socket_t *listeners, int count,
                                 net_engine_t **engine)
{
    net_epoll_t *self;
    int error = net_engine_make(calls, size, listeners, count, engine);
    if (error)
        return error;
    self = (net_epoll_t *)*engine;
    self->set = self->timer = -1;
    net_waker_none(&self->waker);
    self->events = (struct epoll_event *)malloc(((size_t)count + 2) * sizeof *self->events);
    if (net_turns_make(&self->turns, count) != 0 || self->events == NULL)
        error = ENOMEM;
    else if ((self->set = epoll_create1(EPOLL_CLOEXEC)) < 0)
        error = errno;
    else if ((self->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) < 0)
        error = errno;
    else if ((error = net_waker_open(&self->waker)) == 0 &&
             (error = net_epoll_watch(self->set, net_waker_handle(&self->waker), EPOLLIN, NET_EPOLL_WAKER)) == 0)
        error = net_epoll_watch(self->set, self->timer, EPOLLIN, NET_EPOLL_TIMER);
    if (error) {
        net_epoll_close(*engine);
        *engine = NULL;
    }
    return error;
}

static inline int net_epoll_open(const net_socket_t *listeners, int count, net_engine_t **engine)
{
    return net_epoll_make(&net_engine_epoll, sizeof(net_epoll_t), listeners, count, engine);
}

#endif
