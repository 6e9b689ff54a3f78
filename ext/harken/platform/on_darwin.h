/* macOS, in what it does in its own way. The contract is in net.h, what all POSIX systems do alike in on_posix.h. */
#ifndef HARKEN_ON_DARWIN_H
#define HARKEN_ON_DARWIN_H

#include <libproc.h>

#include "platform/wakers/pipe.h"
#include "platform/on_posix.h"
#include "platform/no_sock_flags.h"
#include "platform/not_linux.h"
#include "platform/options.h"

#define NET_SYSTEM "macOS"
#define NET_TAKES_BOTH 1
#define NET_FASTOPEN_EARLY 0 /* only of a socket that listens */

/* The kernel knows SO_ACCEPTCONN, but not in getsockopt(). */
static inline int net_listening(net_socket_t s, int *on)
{
    struct socket_fdinfo info;
    int error = net_acceptconn(s, on);
    if (error != ENOPROTOOPT)
        return error;
    errno = 0; /* a result that is too short sets none */
    if (proc_pidfdinfo(getpid(), s, PROC_PIDFDSOCKETINFO, &info, sizeof info) != (int)sizeof info)
        return errno ? errno : ENOTSOCK;
    *on = (info.psi.soi_options & SO_ACCEPTCONN) != 0;
    return 0;
}

static inline int net_queue(net_socket_t s, long *queued, long *limit)
{
    (void)s;
    *queued = *limit = -1;
    return NET_ENOTSUP;
}

/* That nodelay is inherited is in the code of its accept(). There is no reuse_port: all connections go to one socket. */
static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 1),
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, 0),
    NET_BOTH("keepalive_idle", IPPROTO_TCP, TCP_KEEPALIVE, 0),
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, 0),
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, 0),
    NET_BOTH("fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0),
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, 0),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, 0),
#ifdef IPV6_TCLASS /* depends on what was defined before the system's headers */
    {"tos", IPPROTO_IP, IP_TOS, IPPROTO_IPV6, IPV6_TCLASS, 0},
#endif
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 0},
#ifdef IPV6_BOUND_IF
    {"interface", IPPROTO_IP, IP_BOUND_IF, IPPROTO_IPV6, IPV6_BOUND_IF, 0},
#endif
    NET_BOTH("mss", IPPROTO_TCP, TCP_MAXSEG, 0),
    NET_NO_MORE_OPTIONS,
};

#endif
