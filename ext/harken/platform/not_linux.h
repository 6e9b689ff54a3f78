/* What macOS, the BSDs and other systems with BSD sockets do alike, and Linux in another way. */
#ifndef HARKEN_NOT_LINUX_H
#define HARKEN_NOT_LINUX_H

#include "platform/no_vsock.h"

#define NET_HAS_PROC 0
#define NET_IPPROTO_MPTCP (-1)
#define NET_EXCLUSIVE_IS_A_CHOICE 1
#define NET_JOINS_LATE 0
#define NET_SETS_BOTH 0
#define NET_NEVER_WAITS MSG_OOB
#define NET_BUFFER_FACTOR 1
#define NET_FASTOPEN_MOST 1 /* a switch */

/* macOS and the BSDs allow a specific address beside the wildcard when both have SO_REUSEADDR: without it, ours stays
 * alone, and a restart has to wait for connections in TIME_WAIT. */
static inline int net_exclusive(net_socket_t s, int on)
{
    int reuse = !on;
    return setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) == 0 ? 0 : errno;
}

/* Nothing to do: the second bind() of an address is refused in any case. */
static inline int net_hold(net_socket_t s, int family, int on)
{
    (void)s;
    (void)family;
    (void)on;
    return 0;
}

/* A negative number is read as "the most", where a large one was once truncated to 16 bits. */
static inline int net_backlog(int wished) { return wished; }

static inline int net_drops(net_socket_t s, long *drops)
{
    (void)s;
    *drops = -1;
    return NET_ENOTSUP;
}

#endif
