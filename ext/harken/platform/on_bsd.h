/* FreeBSD, NetBSD, OpenBSD and DragonFly, in what they do in their own way. The contract is in net.h, what all POSIX
 * systems do alike in on_posix.h. */
#ifndef HARKEN_ON_BSD_H
#define HARKEN_ON_BSD_H

#include "platform/wakers/pipe.h"
#include "platform/on_posix.h"
#include "platform/sock_flags.h"
#include "platform/not_linux.h"
#include "platform/options.h"

#if defined(__FreeBSD__)
#define NET_SYSTEM "FreeBSD"
#elif defined(__NetBSD__)
#define NET_SYSTEM "NetBSD"
#elif defined(__OpenBSD__)
#define NET_SYSTEM "OpenBSD"
#else
#define NET_SYSTEM "DragonFly"
#endif
#ifdef __OpenBSD__
#define NET_TAKES_BOTH 0 /* an IPv6 socket never takes IPv4 */
#else
#define NET_TAKES_BOTH 1
#endif
#define NET_FASTOPEN_EARLY 1

static inline int net_listening(net_socket_t s, int *on) { return net_acceptconn(s, on); }

static inline int net_queue(net_socket_t s, long *queued, long *limit)
{
    *queued = *limit = -1;
#ifdef SO_LISTENQLEN /* FreeBSD, DragonFly */
    int value = 0;
    socklen_t size = sizeof value;
    if (getsockopt(s, SOL_SOCKET, SO_LISTENQLEN, &value, &size) != 0)
        return errno;
    *queued = value;
    size = sizeof value;
    if (getsockopt(s, SOL_SOCKET, SO_LISTENQLIMIT, &value, &size) != 0)
        return errno;
    *limit = value;
    return 0;
#else
    (void)s;
    return NET_ENOTSUP;
#endif
}

/* That nodelay is inherited is in the code of their accept(). */
static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 1),
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, 0),
#ifndef __OpenBSD__
    NET_BOTH("keepalive_idle", IPPROTO_TCP, TCP_KEEPIDLE, 0),
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, 0),
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, 0),
#endif
#ifdef __FreeBSD__
    NET_BOTH("fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0),
#endif
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, 0),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, 0),
    {"tos", IPPROTO_IP, IP_TOS, IPPROTO_IPV6, IPV6_TCLASS, 0},
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 0},
#if defined(__FreeBSD__) || defined(__NetBSD__)
    {"transparent", IPPROTO_IP, IP_BINDANY, IPPROTO_IPV6, IPV6_BINDANY, 0},
#elif defined(__OpenBSD__)
    NET_BOTH("transparent", SOL_SOCKET, SO_BINDANY, 0),
#endif
    NET_BOTH("mss", IPPROTO_TCP, TCP_MAXSEG, 0),
#ifdef TCP_CONGESTION /* FreeBSD */
    NET_BOTH("congestion", IPPROTO_TCP, TCP_CONGESTION, 0),
#endif
/* Only where the system spreads the connections: NetBSD and OpenBSD give all of them to one socket. */
#if defined(SO_REUSEPORT_LB) /* FreeBSD */
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT_LB, 0),
#elif defined(__DragonFly__)
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT, 0),
#endif
    NET_NO_MORE_OPTIONS,
};

#endif
