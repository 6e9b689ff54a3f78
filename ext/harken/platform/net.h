/* The one room where platforms differ.
 *
 * Everything outside this folder calls the functions below and never asks where it runs. getaddrinfo, freeaddrinfo,
 * bind, listen, getsockname and their like mean the same in BSD sockets and in Winsock and are called by name; what
 * stands here is what differs.
 *
 * The contract:
 *   - A function that can fail returns 0 or the platform's own error number (errno, WSAGetLastError), taken on the line
 *     that failed. Nobody outside reads errno.
 *   - Results leave through the last arguments. After a failure they hold NET_INVALID, 0 or NULL, never a stale value;
 *     whatever was half made has been closed.
 *   - NET_EINTR is returned, not retried: only the caller can run Python's signal handlers before it goes on.
 *   - Nothing here touches Python, so nothing here needs the GIL.
 *
 *   net_startup, net_cleanup    Winsock's lifecycle, once a process; on POSIX they watch for forks, and do nothing
 *   net_forks                   how often this process has been forked since it loaded the library
 *   net_last_error              the number of the call that failed on the line above
 *   net_socket                  socket(), not inheritable from birth
 *   net_accept, net_accept_many accept(), not inheritable from birth, with the blocking mode that is asked for
 *   net_close                   the end of a handle
 *   net_nudge                   make a transfer that another thread waits in return, before the handle is closed
 *   net_blocking, net_inheritable  change or read one flag of a handle
 *   net_mode                    does a handle from elsewhere block? On POSIX asked; on Windows it does not from now on
 *   net_connect, net_recv, net_send, net_recvfrom, net_sendto, net_recvmsg, net_sendmsg   one attempt each; a wait is
 *                               the caller's business
 *   net_limit                   how long the kernel waits, by the caller's SO_RCVTIMEO and SO_SNDTIMEO
 *   net_control_*               ancillary data: written, read, and descriptors in them closed
 *   net_wait, net_waker_*       wait for a handle and for a waker that another thread can pull: see wakers/
 *   net_poll                    poll(); its error is net_last_error()
 *   net_pause                   sleeps for milliseconds
 *   net_duplicate               a second handle of the same socket
 *   net_describe                family, type and protocol of a handle that came from elsewhere
 *   net_listening               has listen() been called?
 *   net_unbound                 does this error of getsockname() mean that there is no address yet?
 *   net_taken                   does this error of bind() or listen() mean that somebody else has the port?
 *   net_listener_defaults       what every listening TCP socket wants before bind()
 *   net_exclusive               whether the address may be shared: a choice on some systems
 *   net_has_family              is there an address of this family, so that a wildcard stands for something?
 *   net_hold                    keep others from listening on a bound address until we do
 *   net_backlog                 what to hand to listen() for a wished queue length
 *   net_queue                   how many connections wait, and how many may
 *   net_drops                   how many connections a listener has dropped
 *   net_promised, net_worth     is another accept() worth it?
 *   net_died_waiting            does this error of accept() concern one connection only?
 *   net_has_no_name             does this error of getsockname() or getpeername() mean that there is no address?
 *   net_forbidden, net_overloaded  was it refused by a rule? for want of descriptors or memory?
 *   net_scope_name              the interface behind a scope id
 *   net_vsock_put, net_vsock_get  a context id and a port, as `vsock://2:1024` has them; 0 where there is no such family
 *   net_options                 the options of sockets that this system has: see options.h
 *   (numbers.h)                 families, types and the like by their names
 *   net_monotonic               seconds on a clock that never jumps
 *   net_lock, net_unlock, net_yield  between threads, for a short time
 *   net_add, net_get, net_swap  numbers that threads share
 *   (engines/engine.h)          taking connections from many listeners
 */
#ifndef HARKEN_NET_H
#define HARKEN_NET_H

/* Values of net_wait. */
enum { NET_TIMED_OUT = 0, NET_READY = 1, NET_WOKEN = 2 };

#if defined(_WIN32)
#include "platform/on_windows.h"
#elif defined(__linux__)
#include "platform/on_linux.h"
#elif defined(__APPLE__)
#include "platform/on_darwin.h"
#elif defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) || defined(__DragonFly__)
#include "platform/on_bsd.h"
#else
#include "platform/on_other.h"
#endif

#include "platform/numbers.h"

/* An accept4() of Linux that finds nothing costs half as much again as one that finds a connection, for it makes the new
 * socket first. So whoever takes all that wait asks before how many that are, for a tenth of that: -1 when the system
 * does not tell. Nor is 0 believed: an emulator of Linux may say so for ever, and an attempt tells. */
static inline long net_promised(net_socket_t listener)
{
    long queued, limit;
    return net_queue(listener, &queued, &limit) == 0 && queued > 0 ? queued : -1;
}

/* Is there one more, after `count`? Where the number is not known the first is mostly the only one, and a look at the
 * listener after it costs less than an attempt; where more come, they mostly come in numbers, and attempts cost less. */
static inline int net_worth(net_socket_t listener, long promised, int count)
{
    int outcome;
    if (promised >= 0)
        return count < promised;
    return count != 1 || net_wait(listener, POLLIN, NULL, 0, &outcome) != 0 || outcome == NET_READY;
}

/* Up to `limit` waiting connections into `taken`, all non-blocking; `*count` says how many. Stops at the first error:
 * what was taken stands, and the error is returned only when nothing was. Connections that died in the queue are
 * passed over, though not without end. No peer address is asked for: it can be had later, from the few that need it. */
static inline int net_accept_many(net_socket_t listener, int limit, net_socket_t *taken, int *count)
{
    long promised = limit > 1 ? net_promised(listener) : 1;
    int error = 0, died = 0;
    *count = 0;
    while (*count < limit && net_worth(listener, promised, *count)) {
        error = net_accept(listener, 1, NULL, NULL, &taken[*count]);
        if (error == 0)
            ++*count;
        else if (!net_died_waiting(error) || ++died > limit)
            break;
    }
    return *count ? 0 : error;
}

#endif
