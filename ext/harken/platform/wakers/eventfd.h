/* A waker is one eventfd (Linux). Once it is pulled, whoever polls it returns; until it is calmed. */
#ifndef HARKEN_EVENTFD_H
#define HARKEN_EVENTFD_H

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
    int event; /* -1 when closed */
} net_waker_t;

static inline void net_waker_none(net_waker_t *waker) { waker->event = -1; }

/* What to poll for reading. */
static inline int net_waker_handle(const net_waker_t *waker) { return waker->event; }

static inline int net_waker_open(net_waker_t *waker)
{
    waker->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return waker->event < 0 ? errno : 0;
}

static inline void net_waker_pull(net_waker_t *waker)
{
    static const uint64_t one = 1;
    while (write(waker->event, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

/* Once after each pull; tells whether it was pulled. */
static inline int net_waker_calm(net_waker_t *waker)
{
    uint64_t times;
    ssize_t got;
    while ((got = read(waker->event, &times, sizeof times)) < 0 && errno == EINTR) {
    }
    return got > 0;
}

static inline void net_waker_close(net_waker_t *waker)
{
    close(waker->event);
    waker->event = -1;
}

#endif
