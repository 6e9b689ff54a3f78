/* Which socket options this system has: one table, the same names everywhere. What is not in it, the system lacks.
 *
 * An option has a number for IPv4 and one for IPv6, often the same; a socket of another family takes the first.
 * `inherited`: accepted connections have it from their listener. That is measured on Linux (tests/test_options.py) and
 * told by Microsoft for Windows; where it is not known, the option is set on each connection again, which harms nothing.
 */
#ifndef HARKEN_OPTIONS_H
#define HARKEN_OPTIONS_H

typedef struct {
    const char *name;
    int level, option;
    int level6, option6;
    int inherited;
} net_option_t;

/* Numbers that the system has had for longer than some C libraries name them. */
#ifdef __linux__
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif
#ifndef SO_BUSY_POLL
#define SO_BUSY_POLL 46
#endif
#ifndef SO_INCOMING_CPU
#define SO_INCOMING_CPU 49
#endif
#endif
#ifdef _WIN32
#ifndef TCP_KEEPIDLE
#define TCP_KEEPIDLE 3
#define TCP_KEEPCNT 16
#define TCP_KEEPINTVL 17
#endif
#endif
#if defined(TCP_KEEPALIVE) && defined(__APPLE__)
#define NET_KEEPIDLE TCP_KEEPALIVE
#elif defined(TCP_KEEPIDLE)
#define NET_KEEPIDLE TCP_KEEPIDLE
#endif
#ifdef __linux__
#define NET_INHERITED 1
#else
#define NET_INHERITED 0
#endif
#ifdef _WIN32
#define NET_WELL_INHERITED 1 /* what Microsoft says of accept(), and Wine does */
#else
#define NET_WELL_INHERITED NET_INHERITED
#endif

/* How Linux counts: SO_RCVBUF and SO_SNDBUF read twice what was set, and TCP_FASTOPEN is a length; elsewhere a switch. */
#ifdef __linux__
#define NET_BUFFER_FACTOR 2
#define NET_FASTOPEN_MOST INT_MAX
#else
#define NET_BUFFER_FACTOR 1
#define NET_FASTOPEN_MOST 1
#endif
#ifdef __APPLE__
#define NET_FASTOPEN_EARLY 0 /* only of a socket that listens */
#else
#define NET_FASTOPEN_EARLY 1
#endif

#define NET_BOTH(name, level, option, inherited) {name, level, option, level, option, inherited}

static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 1), /* on macOS and the BSDs too: their accept code copies it */
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, NET_WELL_INHERITED),
#ifdef NET_KEEPIDLE
    NET_BOTH("keepalive_idle", IPPROTO_TCP, NET_KEEPIDLE, NET_INHERITED), /* not on macOS */
#endif
#ifdef TCP_KEEPINTVL
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, NET_INHERITED),
#endif
#ifdef TCP_KEEPCNT
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, NET_INHERITED),
#endif
#ifdef TCP_USER_TIMEOUT
    NET_BOTH("user_timeout", IPPROTO_TCP, TCP_USER_TIMEOUT, NET_INHERITED),
#endif
#ifdef TCP_DEFER_ACCEPT
    NET_BOTH("defer_accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0),
#endif
#if defined(TCP_FASTOPEN) && !defined(_WIN32) /* Windows has it for clients */
    NET_BOTH("fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0),
#endif
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, NET_WELL_INHERITED),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, NET_WELL_INHERITED),
/* Before the priority, which Linux derives from it. */
#if defined(IP_TOS) && defined(IPV6_TCLASS) && !defined(_WIN32) /* Windows takes it and sends 0: a policy decides there */
    {"tos", IPPROTO_IP, IP_TOS, IPPROTO_IPV6, IPV6_TCLASS, NET_INHERITED},
#endif
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, NET_INHERITED},
#if defined(__linux__)
    {"freebind", IPPROTO_IP, IP_FREEBIND, IPPROTO_IPV6, IPV6_FREEBIND, NET_INHERITED},
    {"transparent", IPPROTO_IP, IP_TRANSPARENT, IPPROTO_IPV6, IPV6_TRANSPARENT, NET_INHERITED},
    NET_BOTH("interface", SOL_SOCKET, SO_BINDTODEVICE, NET_INHERITED),
    NET_BOTH("mark", SOL_SOCKET, SO_MARK, NET_INHERITED),
    NET_BOTH("priority", SOL_SOCKET, SO_PRIORITY, 0),
    NET_BOTH("incoming_cpu", SOL_SOCKET, SO_INCOMING_CPU, 0),
    NET_BOTH("busy_poll", SOL_SOCKET, SO_BUSY_POLL, NET_INHERITED),
#elif defined(IP_BINDANY) && defined(IPV6_BINDANY) /* FreeBSD */
    {"transparent", IPPROTO_IP, IP_BINDANY, IPPROTO_IPV6, IPV6_BINDANY, 0},
#elif defined(SO_BINDANY) /* OpenBSD */
    NET_BOTH("transparent", SOL_SOCKET, SO_BINDANY, 0),
#elif defined(IP_BOUND_IF) && defined(IPV6_BOUND_IF) /* macOS */
    {"interface", IPPROTO_IP, IP_BOUND_IF, IPPROTO_IPV6, IPV6_BOUND_IF, 0},
#endif
#if defined(TCP_MAXSEG) && !defined(_WIN32) /* the SDK of Windows names it, but its TCP does not document it */
    NET_BOTH("mss", IPPROTO_TCP, TCP_MAXSEG, NET_INHERITED),
#endif
#ifdef TCP_CONGESTION
    NET_BOTH("congestion", IPPROTO_TCP, TCP_CONGESTION, NET_INHERITED),
#endif
/* Only where the system spreads the connections: macOS, NetBSD and OpenBSD give all of them to one socket. */
#if defined(__linux__)
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT, NET_INHERITED),
#elif defined(SO_REUSEPORT_LB)
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT_LB, 0),
#elif defined(__DragonFly__)
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT, 0),
#endif
    {NULL, 0, 0, 0, 0, 0},
};

#endif
