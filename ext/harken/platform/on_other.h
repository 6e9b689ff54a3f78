/* A POSIX system that harken does not know: what POSIX says, and no more. The contract is in net.h. */
#ifndef HARKEN_ON_OTHER_H
#define HARKEN_ON_OTHER_H

#include "platform/wakers/pipe.h"
#include "platform/on_posix.h"
#if defined(SOCK_CLOEXEC) && defined(SOCK_NONBLOCK)
#include "platform/sock_flags.h"
#else
#include "platform/no_sock_flags.h"
#endif
#include "platform/not_linux.h"
#include "platform/options.h"

#define NET_SYSTEM "this system"
#define NET_TAKES_BOTH 1
#define NET_FASTOPEN_EARLY 1

static inline int net_listening(net_socket_t s, int *on) { return net_acceptconn(s, on); }

static inline int net_queue(net_socket_t s, long *queued, long *limit)
{
    (void)s;
    *queued = *limit = -1;
    return NET_ENOTSUP;
}

static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 0),
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, 0),
#ifdef TCP_KEEPIDLE
    NET_BOTH("keepalive_idle", IPPROTO_TCP, TCP_KEEPIDLE, 0),
#endif
#ifdef TCP_KEEPINTVL
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, 0),
#endif
#ifdef TCP_KEEPCNT
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, 0),
#endif
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, 0),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, 0),
#if defined(IP_TOS) && defined(IPV6_TCLASS)
    {"tos", IPPROTO_IP, IP_TOS, IPPROTO_IPV6, IPV6_TCLASS, 0},
#endif
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 0},
#ifdef TCP_MAXSEG
    NET_BOTH("mss", IPPROTO_TCP, TCP_MAXSEG, 0),
#endif
    NET_NO_MORE_OPTIONS,
};

#endif
