/* A waker is a pipe (macOS, the BSDs). Once it is pulled, whoever polls it returns; until it is calmed. */
#ifndef HARKEN_PIPE_H
#define HARKEN_PIPE_H

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

typedef struct {
    int read;
    int write; /* -1, both, when closed */
} net_waker_t;

static inline void net_waker_none(net_waker_t *waker) { waker->read = waker->write = -1; }

/* What to poll for reading. */
static inline int net_waker_handle(const net_waker_t *waker) { return waker->read; }

/* Not inheritable; non-blocking, so that a waker that was not pulled holds nobody up. */
static inline int net_waker_open(net_waker_t *waker)
{
    int ends[2], n, error = 0;
    net_waker_none(waker);
    if (pipe(ends) != 0)
        return errno;
    for (n = 0; n < 2 && error == 0; n++)
        if (fcntl(ends[n], F_SETFD, FD_CLOEXEC) != 0 || fcntl(ends[n], F_SETFL, O_NONBLOCK) != 0)
            error = errno;
    if (error) {
        close(ends[0]);
        close(ends[1]);
        return error;
    }
    waker->read = ends[0];
    waker->write = ends[1];
    return 0;
}

static inline void net_waker_pull(net_waker_t *waker)
{
    while (write(waker->write, "", 1) < 0 && errno == EINTR) {
    }
}

/* Once after each pull; tells whether it was pulled. */
static inline int net_waker_calm(net_waker_t *waker)
{
    char one;
    ssize_t got;
    while ((got = read(waker->read, &one, 1)) < 0 && errno == EINTR) {
    }
    return got > 0;
}

static inline void net_waker_close(net_waker_t *waker)
{
    close(waker->write);
    close(waker->read);
    net_waker_none(waker);
}

#endif
