/* Linux, in what it does in its own way. The contract is in net.h, what all POSIX systems do alike in on_posix.h. */
#ifndef HARKEN_ON_LINUX_H
#define HARKEN_ON_LINUX_H

#include "platform/wakers/eventfd.h"
#include "platform/on_posix.h"
#include "platform/sock_flags.h"
#include "platform/options.h"

#define NET_SYSTEM "Linux"
#define NET_HAS_PROC 1 /* the kernel's settings and counters are files in /proc */
#define NET_TAKES_BOTH 1
#define NET_IPPROTO_MPTCP 262 /* in Linux's headers since 5.6, in C libraries later */
#define NET_EXCLUSIVE_IS_A_CHOICE 0
#define NET_JOINS_LATE 1
#define NET_SETS_BOTH 1
#define NET_NEVER_WAITS (MSG_OOB | MSG_ERRQUEUE)
#define NET_BUFFER_FACTOR 2 /* SO_RCVBUF and SO_SNDBUF read twice what was set */
#define NET_FASTOPEN_MOST INT_MAX /* TCP_FASTOPEN is the length of a queue */
#define NET_FASTOPEN_EARLY 1

/* Numbers that the kernel has had for longer than some C libraries name them. */
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
#ifndef TCP_FASTOPEN
#define TCP_FASTOPEN 23
#endif
#ifndef SO_MEMINFO
#define SO_MEMINFO 55
#endif

#if __has_include(<linux/vm_sockets.h>)
#include <linux/vm_sockets.h>
#define NET_AF_VSOCK AF_VSOCK

static inline int net_vsock_put(net_address_t *address, unsigned cid, unsigned port, net_length_t *length)
{
    struct sockaddr_vm *vm = (struct sockaddr_vm *)address;
    memset(address, 0, sizeof *address);
    vm->svm_family = AF_VSOCK;
    vm->svm_cid = cid;
    vm->svm_port = port;
    *length = sizeof *vm;
    return 1;
}

static inline int net_vsock_get(const struct sockaddr *address, unsigned *cid, unsigned *port)
{
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)address;
    *cid = vm->svm_cid;
    *port = vm->svm_port;
    return vm->svm_family == AF_VSOCK;
}
#else
#include "platform/no_vsock.h"
#endif

static inline int net_listening(net_socket_t s, int *on) { return net_acceptconn(s, on); }

/* Nothing to set: nobody may ever listen beside a listener, on its address or on one that overlaps, and beside a socket
 * that is only bound, SO_REUSEADDR lets others in, which is on already. */
static inline int net_exclusive(net_socket_t s, int on)
{
    (void)s;
    (void)on;
    return 0;
}

/* Two sockets may be bound to one address when both have SO_REUSEADDR and neither listens; the first to listen wins.
 * Without the option on ours, nobody can join. */
static inline int net_hold(net_socket_t s, int family, int on)
{
    int reuse = !on;
    if (family == AF_INET || family == AF_INET6)
        return setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) == 0 ? 0 : errno;
    return 0;
}

/* The kernel takes the smaller of the wish and net.core.somaxconn, whatever the wish. */
static inline int net_backlog(int wished) { return wished < 0 ? INT_MAX : wished; }

/* A TCP listener's queue is in two fields of TCP_INFO that mean something else for connections. */
static inline int net_queue(net_socket_t s, long *queued, long *limit)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    *queued = *limit = -1;
    memset(&info, 0, sizeof info);
    if (getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return errno;
    if (size < offsetof(struct tcp_info, tcpi_sacked) + sizeof info.tcpi_sacked)
        return NET_ENOTSUP; /* emulators of Linux that know a part of it would tell of a queue for nobody */
    *queued = (long)info.tcpi_unacked;
    *limit = (long)info.tcpi_sacked;
    return 0;
}

/* How many connections a socket has dropped since it was made, by whatever process: the kernel counts them for each. */
static inline int net_drops(net_socket_t s, long *drops)
{
    uint32_t told[9]; /* SK_MEMINFO_VARS; the last is SK_MEMINFO_DROPS */
    socklen_t size = sizeof told;
    *drops = -1;
    if (getsockopt(s, SOL_SOCKET, SO_MEMINFO, told, &size) != 0)
        return errno;
    if (size < sizeof told)
        return NET_ENOTSUP;
    *drops = (long)told[8];
    return 0;
}

/* All but what is 0 here is inherited by accepted connections, which tests/test_options.py measures. */
static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 1),
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, 1),
    NET_BOTH("keepalive_idle", IPPROTO_TCP, TCP_KEEPIDLE, 1),
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, 1),
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, 1),
    NET_BOTH("user_timeout", IPPROTO_TCP, TCP_USER_TIMEOUT, 1),
    NET_BOTH("defer_accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0),
    NET_BOTH("fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0),
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, 1),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, 1),
    /* Before the priority, which the kernel derives from it. */
    {"tos", IPPROTO_IP, IP_TOS, IPPROTO_IPV6, IPV6_TCLASS, 1},
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 1},
    {"freebind", IPPROTO_IP, IP_FREEBIND, IPPROTO_IPV6, IPV6_FREEBIND, 1},
    {"transparent", IPPROTO_IP, IP_TRANSPARENT, IPPROTO_IPV6, IPV6_TRANSPARENT, 1},
    NET_BOTH("interface", SOL_SOCKET, SO_BINDTODEVICE, 1),
    NET_BOTH("mark", SOL_SOCKET, SO_MARK, 1),
    NET_BOTH("priority", SOL_SOCKET, SO_PRIORITY, 0),
    NET_BOTH("incoming_cpu", SOL_SOCKET, SO_INCOMING_CPU, 0),
    NET_BOTH("busy_poll", SOL_SOCKET, SO_BUSY_POLL, 1),
    NET_BOTH("mss", IPPROTO_TCP, TCP_MAXSEG, 1),
    NET_BOTH("congestion", IPPROTO_TCP, TCP_CONGESTION, 1),
    NET_BOTH("reuse_port", SOL_SOCKET, SO_REUSEPORT, 1),
    NET_NO_MORE_OPTIONS,
};

#endif
