/* kqueue() and kevent() on Linux, as far as platform/engines/kqueue.h uses them, so that it runs where most tests are
 * run: filters for listeners, one timer and user events. No more than a stand-in: made after the manual pages and what
 * the kernels of macOS, FreeBSD, NetBSD and OpenBSD are known to do, and strict where they differ. To be included before
 * all else (cc -include), with HARKEN_KQUEUE defined and this folder's parent on the path of headers.
 *
 * As in the kernels:
 *   - What was ready stays queued, and the kqueue readable, until kevent() looks again. A connection that accept() takes
 *     leaves its kqueues so.
 *   - A child of fork() has no kqueue, and its number is free there.
 *   - A trigger is not taken when it comes with EV_ADD (FreeBSD), and not taken back but by EV_DELETE (macOS).
 *   - A timer that is there is not reset by EV_ADD (older kernels), and fires a little early by CLOCK_MONOTONIC (macOS
 *     has another clock for timers).
 *   - The first change that fails is the last.
 *
 * Not as there: a kqueue takes four descriptors; a listener that is closed behind the engine's back stays as long as any
 * process has it open; accept() of another module or process leaves nothing queued. KQUEUE_WITHOUT_USER: a system
 * without EVFILT_USER; KQUEUE_EARLY: by how many nanoseconds a timer is early. */
#ifndef HARKEN_TESTS_KQUEUE_H
#define HARKEN_TESTS_KQUEUE_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    intptr_t data;
    void *udata;
};

#define EVFILT_READ (-1)
#define EVFILT_TIMER (-7)
#ifndef KQUEUE_WITHOUT_USER
#define EVFILT_USER (-11)
#define NOTE_TRIGGER 0x01000000u
#endif
#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_ONESHOT 0x0010

enum { KQ_TIMER = -1, KQ_USER = -2, KQ_STALE = -3 };

#ifndef KQUEUE_EARLY
#define KQUEUE_EARLY 100000
#endif

struct kqueue {
    struct kqueue *next;
    int set;                /* an epoll descriptor: what the caller has */
    int timer, user, stale; /* in the set */
    int count, has_timer, has_user;
    struct kevent *reads; /* owned; `data`: is it queued, and not ready any more? */
    struct kevent timer_event, user_event;
};

static struct kqueue *kq_all;
static pthread_mutex_t kq_lock = PTHREAD_MUTEX_INITIALIZER;

static inline void kq_free(struct kqueue *kq)
{
    close(kq->set);
    close(kq->timer);
    close(kq->user);
    close(kq->stale);
    free(kq->reads);
    free(kq);
}

static void kq_before_fork(void) { pthread_mutex_lock(&kq_lock); }
static void kq_in_the_parent(void) { pthread_mutex_unlock(&kq_lock); }
static void kq_in_the_child(void)
{
    while (kq_all) {
        struct kqueue *kq = kq_all;
        kq_all = kq->next;
        kq_free(kq);
    }
    pthread_mutex_unlock(&kq_lock);
}
static void kq_watch_forks(void) { pthread_atfork(kq_before_fork, kq_in_the_parent, kq_in_the_child); }

static inline int kq_epoll(int set, int how, int handle, int name)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = EPOLLIN;
    event.data.fd = name;
    return epoll_ctl(set, how, handle, &event);
}

static inline int kqueue(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct kqueue *kq = (struct kqueue *)calloc(1, sizeof *kq);
    int error = ENOMEM;
    pthread_once(&once, kq_watch_forks);
    if (kq == NULL)
        return -1;
    kq->set = epoll_create1(0);
    kq->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    kq->user = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    kq->stale = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (kq->set < 0 || kq->timer < 0 || kq->user < 0 || kq->stale < 0 ||
        kq_epoll(kq->set, EPOLL_CTL_ADD, kq->timer, KQ_TIMER) != 0 ||
        kq_epoll(kq->set, EPOLL_CTL_ADD, kq->user, KQ_USER) != 0 ||
        kq_epoll(kq->set, EPOLL_CTL_ADD, kq->stale, KQ_STALE) != 0) {
        error = errno;
        kq_free(kq);
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&kq_lock);
    kq->next = kq_all;
    kq_all = kq;
    pthread_mutex_unlock(&kq_lock);
    return kq->set;
}

/* With the lock. */
static inline struct kqueue *kq_find(int set)
{
    struct kqueue *kq = kq_all;
    while (kq && kq->set != set)
        kq = kq->next;
    return kq;
}

static inline struct kevent *kq_listener(struct kqueue *kq, int ident)
{
    int n;
    for (n = 0; n < kq->count; n++)
        if (kq->reads[n].ident == (uintptr_t)ident)
            return &kq->reads[n];
    return NULL;
}

static inline void kq_count(int handle, int up)
{
    uint64_t number = 1;
    ssize_t done = up ? write(handle, &number, sizeof number) : read(handle, &number, sizeof number);
    (void)done;
}

/* Is anything queued that is not ready? */
static inline void kq_restale(struct kqueue *kq)
{
    int n, stale = 0;
    for (n = 0; n < kq->count; n++)
        stale |= kq->reads[n].data != 0;
    kq_count(kq->stale, stale);
}

static inline int kq_set_timer(struct kqueue *kq, intptr_t milliseconds)
{
    struct itimerspec when;
    memset(&when, 0, sizeof when);
    if (milliseconds > 0) {
        long long time = milliseconds * 1000000LL;
        time -= time > 2 * KQUEUE_EARLY ? KQUEUE_EARLY : time / 2;
        when.it_value.tv_sec = (time_t)(time / 1000000000);
        when.it_value.tv_nsec = (long)(time % 1000000000);
    }
    return timerfd_settime(kq->timer, 0, &when, NULL) == 0 ? 0 : errno;
}

static inline int kq_change_listener(struct kqueue *kq, const struct kevent *change)
{
    int ident = (int)change->ident;
    struct kevent *known = kq_listener(kq, ident);
    if (fcntl(ident, F_GETFD) < 0)
        return EBADF;
    if (change->flags & EV_DELETE) {
        if (known == NULL || kq_epoll(kq->set, EPOLL_CTL_DEL, ident, ident) != 0)
            return ENOENT;
        *known = kq->reads[--kq->count];
        kq_restale(kq);
        return 0;
    }
    if (kq_epoll(kq->set, EPOLL_CTL_ADD, ident, ident) != 0 && errno != EEXIST)
        return errno;
    if (known == NULL) {
        known = (struct kevent *)realloc(kq->reads, ((size_t)kq->count + 1) * sizeof *known);
        if (known == NULL)
            return ENOMEM;
        kq->reads = known;
        known += kq->count++;
    }
    *known = *change;
    return 0;
}

static inline int kq_change(struct kqueue *kq, const struct kevent *change)
{
    int add = change->flags & EV_ADD, delete = change->flags & EV_DELETE, before;
    switch (change->filter) {
    case EVFILT_READ:
        return kq_change_listener(kq, change);
    case EVFILT_TIMER:
        before = kq->has_timer;
        if (delete ? !before : !add || change->data < 1 || !(change->flags & EV_ONESHOT))
            return delete ? ENOENT : EINVAL;
        kq->has_timer = !delete;
        kq->timer_event = *change;
        return delete || !before ? kq_set_timer(kq, delete ? 0 : change->data) : 0;
#ifdef EVFILT_USER
    case EVFILT_USER:
        before = kq->has_user;
        if (!add && !before)
            return ENOENT;
        kq->has_user = !delete;
        if (add)
            kq->user_event = *change;
        if (delete || (before && change->fflags & NOTE_TRIGGER))
            kq_count(kq->user, !delete);
        return 0;
#endif
    default:
        return EINVAL;
    }
}

/* What of this is true now; with the lock. */
static inline int kq_report(struct kqueue *kq, const struct epoll_event *found, struct kevent *event)
{
    struct kevent *known;
    uint64_t times;
    switch (found->data.fd) {
    case KQ_STALE:
        return 0;
    case KQ_TIMER:
        if (!kq->has_timer || read(kq->timer, &times, sizeof times) < 0)
            return 0;
        kq->has_timer = 0;
        *event = kq->timer_event;
        return 1;
    case KQ_USER:
        *event = kq->user_event;
        return kq->has_user;
    default:
        if ((known = kq_listener(kq, found->data.fd)) == NULL)
            return 0;
        *event = *known;
        return 1;
    }
}

static inline int kevent(int set, const struct kevent *changes, int change_count, struct kevent *events, int room,
                         const struct timespec *time)
{
    struct epoll_event found[64];
    struct timespec now;
    struct kqueue *kq;
    long long end = LLONG_MAX, left = -1; /* nanoseconds; milliseconds */
    int n, count = 0, ready, error = 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (time)
        end = (now.tv_sec + time->tv_sec) * 1000000000LL + now.tv_nsec + time->tv_nsec;
    pthread_mutex_lock(&kq_lock);
    kq = kq_find(set);
    for (n = 0; kq && n < change_count && error == 0; n++)
        error = kq_change(kq, &changes[n]);
    pthread_mutex_unlock(&kq_lock);
    if (kq == NULL || error) {
        errno = kq ? error : EBADF;
        return -1;
    }
    while (room > 0) {
        pthread_mutex_lock(&kq_lock);
        for (n = 0; n < kq->count; n++)
            kq->reads[n].data = 0;
        kq_restale(kq);
        pthread_mutex_unlock(&kq_lock);
        if (time) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            left = (end - now.tv_sec * 1000000000LL - now.tv_nsec + 999999) / 1000000;
        }
        ready = epoll_wait(set, found, room < 63 ? room + 1 : 64, left < 0 ? time ? 0 : -1 : (int)left);
        if (ready < 0)
            return -1;
        pthread_mutex_lock(&kq_lock);
        for (n = 0; n < ready && count < room; n++)
            count += kq_report(kq, &found[n], &events[count]);
        pthread_mutex_unlock(&kq_lock);
        if (count > 0 || (time && left <= 0))
            break;
    }
    return count;
}

/* A connection was taken: the kqueues that have its listener do not know yet. */
static inline void kq_took(int listener)
{
    struct kqueue *kq;
    struct kevent *known;
    int error = errno;
    pthread_mutex_lock(&kq_lock);
    for (kq = kq_all; kq; kq = kq->next)
        if ((known = kq_listener(kq, listener)) != NULL) {
            known->data = 1;
            kq_restale(kq);
        }
    pthread_mutex_unlock(&kq_lock);
    errno = error;
}

static inline int kq_accept4(int listener, struct sockaddr *address, socklen_t *length, int flags)
{
    int handle = accept4(listener, address, length, flags);
    if (handle >= 0)
        kq_took(listener);
    return handle;
}

static inline int kq_accept(int listener, struct sockaddr *address, socklen_t *length)
{
    int handle = accept(listener, address, length);
    if (handle >= 0)
        kq_took(listener);
    return handle;
}

static inline int kq_close(int handle)
{
    struct kqueue **at, *kq = NULL;
    pthread_mutex_lock(&kq_lock);
    for (at = &kq_all; *at && kq == NULL;)
        if ((*at)->set == handle) {
            kq = *at;
            *at = kq->next;
        } else {
            at = &(*at)->next;
        }
    pthread_mutex_unlock(&kq_lock);
    if (kq == NULL)
        return close(handle);
    kq_free(kq);
    return 0;
}

#define accept4 kq_accept4
#define accept kq_accept
#define close kq_close

#endif
