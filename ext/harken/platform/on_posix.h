/* What all systems with BSD sockets do alike. The contract is in net.h; the system's own file includes this one, and has
 * what it does in its own way. No system is asked for here, only whether a name is there. */
#ifndef HARKEN_ON_POSIX_H
#define HARKEN_ON_POSIX_H

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef int net_socket_t;
typedef socklen_t net_length_t;
typedef struct iovec net_buffer_t;

#include "platform/address.h"

#define NET_INVALID (-1)
#define NET_WAITS_BY_POLL 0 /* a blocking socket blocks in the call itself */
#define NET_WAIT_SLICE (-1) /* milliseconds; a signal ends poll(), so one wait may last for ever */

#define NET_EAFNOSUPPORT EAFNOSUPPORT
#define NET_EADDRINUSE EADDRINUSE
#define NET_EADDRNOTAVAIL EADDRNOTAVAIL
#define NET_EBADF EBADF
#define NET_ECONNRESET ECONNRESET
#define NET_EINPROGRESS EINPROGRESS
#define NET_EINTR EINTR
#define NET_EISCONN EISCONN
#define NET_ENOMEM ENOMEM
#define NET_ENOTSUP EOPNOTSUPP
#define NET_EWOULDBLOCK EAGAIN
#define NET_EPROTONOSUPPORT EPROTONOSUPPORT
#define NET_ERROR_TEXT(number) gai_strerror(number)
#ifndef AI_V4MAPPED /* NetBSD and OpenBSD: -1 is what they refuse, with EAI_BADFLAGS */
#define AI_V4MAPPED (-1)
#define AI_ALL (-1)
#endif
#ifdef EAI_SYSTEM
#define NET_EAI_SYSTEM EAI_SYSTEM
#else
#define NET_EAI_SYSTEM INT_MIN
#endif

#define NET_AI_NUMERICSERV AI_NUMERICSERV

#ifdef MSG_NOSIGNAL
#define NET_MSG_NOSIGNAL MSG_NOSIGNAL
#else
#define NET_MSG_NOSIGNAL 0
#endif

/* For one call, whatever the mode of the socket: dup() and fork() share the mode, and somebody may have changed it. */
#define NET_DONTWAIT MSG_DONTWAIT
#define NET_WAITALL MSG_WAITALL
#define NET_NEVER_GATHERS (MSG_PEEK | MSG_DONTWAIT | NET_NEVER_WAITS)
#define NET_LIMIT_REACHED EAGAIN /* what a blocking call says after SO_RCVTIMEO or SO_SNDTIMEO */

/* In the system's own file. */
static inline int net_socket(int family, int type, int proto, net_socket_t *s);

static inline int net_last_error(void) { return errno; }

/* A fork copies the count of calls in flight, but not the threads that were in them. */
static volatile unsigned net_fork_count;
static void net_count_fork(void) { ++net_fork_count; }
static void net_watch_forks(void) { pthread_atfork(NULL, NULL, net_count_fork); }
static inline unsigned net_forks(void) { return net_fork_count; }

/* `first`: is there a cleanup to arrange? Never here. */
static inline int net_startup(int *first)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *first = 0;
    return pthread_once(&once, net_watch_forks);
}

/* BSD sockets need no undoing: the kernel closes what a process leaves open. */
static inline void net_cleanup(void) {}

static inline int net_close(net_socket_t s)
{
    /* Linux and the BSDs give the number back even when they say EINTR: a second close could hit a stranger. */
    return close(s) == 0 || errno == EINTR ? 0 : errno;
}

/* shutdown() ends a send, recv or connect in another thread, which close() alone would leave waiting. */
static inline void net_nudge(net_socket_t s) { (void)shutdown(s, SHUT_RDWR); }

static inline int net_inheritable(net_socket_t s, int on)
{
    int flags = fcntl(s, F_GETFD);
    if (flags < 0)
        return errno;
    int wanted = on ? flags & ~FD_CLOEXEC : flags | FD_CLOEXEC;
    return wanted == flags || fcntl(s, F_SETFD, wanted) == 0 ? 0 : errno;
}

static inline int net_is_inheritable(net_socket_t s, int *on)
{
    int flags = fcntl(s, F_GETFD);
    *on = flags >= 0 && !(flags & FD_CLOEXEC);
    return flags < 0 ? errno : 0;
}

static inline int net_blocking(net_socket_t s, int on)
{
    int nonblocking = !on;
    return ioctl(s, FIONBIO, &nonblocking) == 0 ? 0 : errno;
}

/* Asked, not changed: O_NONBLOCK belongs to the socket and not to the handle. A process that shares it with our own may
 * have it in an event loop, which would block. */
static inline int net_mode(net_socket_t s, int *blocks)
{
    int flags = fcntl(s, F_GETFL);
    *blocks = flags >= 0 && !(flags & O_NONBLOCK);
    return flags < 0 ? errno : 0;
}

static inline int net_duplicate(net_socket_t s, net_socket_t *copy)
{
    *copy = fcntl(s, F_DUPFD_CLOEXEC, 0);
    return *copy < 0 ? errno : 0;
}

/* EINVAL: on the BSDs, of a socket that was shut down. EOPNOTSUPP: of a family without addresses. */
static inline int net_has_no_name(int error)
{
    return error == ENOTCONN || error == EINVAL || error == EOPNOTSUPP;
}

/* The connection ended, or the network had an error waiting for it, before accept() could hand it out: accept(2) of
 * Linux passes such errors on and asks to treat them like EAGAIN. The listener is well, and the next may be too. */
static inline int net_died_waiting(int error)
{
    switch (error) {
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
#ifdef ENONET
    case ENONET:
#endif
        return 1;
    default:
        return 0;
    }
}

/* Linux: a firewall's word about one connection; or a sandbox's about accept() itself, which is never over. */
static inline int net_forbidden(int error) { return error == EPERM; }

/* The process or the system has no descriptors or no memory left. */
static inline int net_overloaded(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

static inline int net_connect(net_socket_t s, const struct sockaddr *address, net_length_t length)
{
    return connect(s, address, length) == 0 ? 0 : errno;
}

static inline int net_recv(net_socket_t s, void *data, size_t size, int flags, size_t *done)
{
    ssize_t n = recv(s, data, size, flags);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? errno : 0;
}

static inline int net_send(net_socket_t s, const void *data, size_t size, int flags, size_t *done)
{
    ssize_t n = send(s, data, size, flags | NET_MSG_NOSIGNAL);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? errno : 0;
}

/* The length is 0 where the system told no address, as for a connected TCP socket. */
static inline int net_recvfrom(net_socket_t s, void *data, size_t size, int flags, struct sockaddr *address,
                               net_length_t *length, size_t *done)
{
    memset(address, 0, *length);
    ssize_t n = recvfrom(s, data, size, flags, address, length);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? errno : 0;
}

static inline int net_sendto(net_socket_t s, const void *data, size_t size, int flags, const struct sockaddr *address,
                             net_length_t length, size_t *done)
{
    ssize_t n = sendto(s, data, size, flags | NET_MSG_NOSIGNAL, address, length);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? errno : 0;
}

/* SO_RCVTIMEO or SO_SNDTIMEO in seconds, 0 for none. */
static inline double net_limit(net_socket_t s, int receives)
{
    struct timeval time;
    socklen_t size = sizeof time;
    memset(&time, 0, sizeof time);
    if (getsockopt(s, SOL_SOCKET, receives ? SO_RCVTIMEO : SO_SNDTIMEO, &time, &size) != 0)
        return 0;
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

/* Does it fit whole? */
static inline int net_buffer(net_buffer_t *buffer, void *data, size_t size)
{
    buffer->iov_base = data;
    buffer->iov_len = size;
    return 1;
}

static inline void net_message(struct msghdr *message, net_buffer_t *buffers, size_t count, void *control,
                               size_t control_size, const struct sockaddr *address, net_length_t length)
{
    memset(message, 0, sizeof *message);
    message->msg_name = (void *)address;
    message->msg_namelen = length;
    message->msg_iov = buffers;
    /* size_t on Linux with glibc, int or socklen_t elsewhere */
    message->msg_iovlen = (__typeof__(message->msg_iovlen))count;
    message->msg_control = control;
    message->msg_controllen = (__typeof__(message->msg_controllen))control_size;
}

static inline int net_sendmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t control_size,
                              int flags, const struct sockaddr *address, net_length_t length, size_t *done)
{
    struct msghdr message;
    net_message(&message, buffers, count, control, control_size, address, length);
    ssize_t n = sendmsg(s, &message, flags | NET_MSG_NOSIGNAL);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? errno : 0;
}

/* `*control_size` and `*length` come back as what there was, `*told` as the flags of the message; after a failure the
 * first two are as they were, for the next attempt. */
static inline int net_recvmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t *control_size,
                              int flags, int *told, struct sockaddr *address, net_length_t *length, size_t *done)
{
    struct msghdr message;
    memset(address, 0, *length);
    net_message(&message, buffers, count, control, *control_size, address, *length);
    ssize_t n = recvmsg(s, &message, flags);
    *done = n < 0 ? 0 : (size_t)n;
    if (n < 0)
        return errno;
    *control_size = (size_t)message.msg_controllen;
    *length = message.msg_namelen;
    *told = message.msg_flags;
    return 0;
}

/* Room for one item of ancillary data, and the item itself, written at `at`. */
static inline size_t net_control_space(size_t size) { return CMSG_SPACE(size); }
static inline void net_control_put(void *at, int level, int type, const void *data, size_t size)
{
    struct cmsghdr *item = (struct cmsghdr *)at;
    item->cmsg_level = level;
    item->cmsg_type = type;
    item->cmsg_len = (__typeof__(item->cmsg_len))CMSG_LEN(size);
    memcpy(CMSG_DATA(item), data, size);
}

/* The item at `*at`, and where the next one is. 0 behind the last; one that was cut short has what there is of it. */
static inline int net_control_get(void *control, size_t control_size, size_t *at, int *level, int *type,
                                  const char **data, size_t *size)
{
    const struct cmsghdr *item = (const struct cmsghdr *)((char *)control + *at);
    size_t head = CMSG_LEN(0), left;
    if (*at > control_size || (left = control_size - *at) < head || (size_t)item->cmsg_len < head)
        return 0;
    *level = item->cmsg_level;
    *type = item->cmsg_type;
    *data = (const char *)item + head;
    *size = (size_t)item->cmsg_len - head;
    *at += CMSG_SPACE(*size);
    if (*size > left - head)
        *size = left - head;
    return 1;
}

/* Descriptors that came with a message that nobody is going to get. */
static inline void net_control_drop(void *control, size_t control_size)
{
    size_t at = 0, size, n;
    int level, type, number;
    const char *data;
    while (net_control_get(control, control_size, &at, &level, &type, &data, &size))
        if (level == SOL_SOCKET && type == SCM_RIGHTS)
            for (n = 0; n + sizeof number <= size; n += sizeof number) {
                memcpy(&number, data + n, sizeof number);
                close(number);
            }
}

typedef struct pollfd net_pollfd_t;
static inline int net_poll(net_pollfd_t *on, int count, int milliseconds)
{
    return poll(on, (nfds_t)count, milliseconds);
}

static inline void net_pause(int milliseconds) { (void)poll(NULL, 0, milliseconds); }

static inline int net_wait(net_socket_t s, short events, const net_waker_t *waker, int milliseconds, int *outcome)
{
    struct pollfd on[2] = {{s, events, 0}, {waker ? net_waker_handle(waker) : -1, POLLIN, 0}};
    int n = poll(on, waker ? 2 : 1, milliseconds);
    *outcome = n <= 0 ? NET_TIMED_OUT : on[1].revents ? NET_WOKEN : NET_READY;
    return n < 0 ? errno : 0;
}

static inline int net_describe(net_socket_t s, int *family, int *type, int *proto)
{
    struct sockaddr_storage name;
    socklen_t size = sizeof *type;
    int kind = 0, protocol = 0;
    *family = *type = *proto = 0;
    if (getsockopt(s, SOL_SOCKET, SO_TYPE, &kind, &size) != 0)
        return errno;
    memset(&name, 0, sizeof name);
    size = sizeof name;
    if (getsockname(s, (struct sockaddr *)&name, &size) != 0)
        return errno;
#ifdef SO_PROTOCOL
    size = sizeof protocol;
    if (getsockopt(s, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) != 0)
        return errno;
#else
    /* macOS cannot be asked; a stream socket of the internet families is TCP there. */
    if (kind == SOCK_STREAM && (name.ss_family == AF_INET || name.ss_family == AF_INET6))
        protocol = IPPROTO_TCP;
#endif
    *family = name.ss_family;
    *type = kind;
    *proto = protocol;
    return 0;
}

/* net_listening(), on all systems but macOS. */
static inline int net_acceptconn(net_socket_t s, int *on)
{
    socklen_t size = sizeof *on;
    *on = 0;
    return getsockopt(s, SOL_SOCKET, SO_ACCEPTCONN, on, &size) == 0 ? 0 : errno;
}

/* It has the wildcard, and port 0. */
static inline int net_unbound(int error)
{
    (void)error;
    return 0;
}

static inline int net_taken(int error) { return error == EADDRINUSE; }

/* SO_REUSEADDR lets a restarted server have its port back while old connections are in TIME_WAIT. On POSIX it does not
 * let a second server listen beside a live one. TCP_NODELAY is inherited by accepted connections: set here, it costs
 * one call a listener instead of one a connection. */
static inline int net_listener_defaults(net_socket_t s, int family)
{
    int one = 1;
    if (family != AF_INET && family != AF_INET6)
        return 0; /* a unix path has no TIME_WAIT and no Nagle */
    if (setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0)
        return errno;
    if (setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        return errno;
    return 0;
}

/* EADDRNOTAVAIL when no interface has an address of this family, though one has an address of the other; 0 when it is
 * there, or cannot be told. bind() of the wildcard does not tell: with IPv6 disabled (disable_ipv6 = 1) Linux binds "::"
 * as well as ever, and nobody can connect.
 *
 * Nearly always the loopback address answers. It is tried with a UDP socket, so that no TCP port is taken from anybody,
 * not for an instant. Only where there is no loopback address are the interfaces gone through, those that are up: a
 * machine without any has no network yet and may get either family. */
static inline int net_has_family(int family)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } loopback;
    socklen_t length = family == AF_INET6 ? sizeof loopback.in6 : sizeof loopback.in;
    struct ifaddrs *list = NULL, *each;
    int error = 0, others = 0, probe;
    memset(&loopback, 0, sizeof loopback);
    loopback.any.sa_family = (sa_family_t)family;
    if (family == AF_INET6)
        loopback.in6.sin6_addr = in6addr_loopback;
    else
        loopback.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (net_socket(family, SOCK_DGRAM, 0, &probe) != 0)
        return 0; /* the socket that is wanted will tell why */
    if (bind(probe, &loopback.any, length) != 0)
        error = errno;
    net_close(probe);
    if (error != EADDRNOTAVAIL || getifaddrs(&list) != 0)
        return 0;
    for (each = list; each; each = each->ifa_next) {
        int of = each->ifa_addr && each->ifa_flags & IFF_UP ? each->ifa_addr->sa_family : AF_UNSPEC;
        if (of == family)
            error = 0;
        else if (of == AF_INET || of == AF_INET6)
            others = 1;
    }
    freeifaddrs(list);
    return others ? error : 0;
}

/* The name of an interface; `name` has room for IF_NAMESIZE bytes. */
static inline int net_scope_name(unsigned index, char *name) { return if_indextoname(index, name) ? 0 : errno; }

/* For a few instructions or system calls, none of which needs the GIL: so it may be waited for with the GIL. */
typedef pthread_mutex_t net_lock_t;
static inline void net_lock_init(net_lock_t *lock) { (void)pthread_mutex_init(lock, NULL); }
static inline void net_lock(net_lock_t *lock) { (void)pthread_mutex_lock(lock); }
static inline void net_unlock(net_lock_t *lock) { (void)pthread_mutex_unlock(lock); }
static inline void net_yield(void) { (void)sched_yield(); }

/* Numbers that threads share, in one order for all of them. `net_add` returns the sum. */
static inline long net_add(long *number, long more) { return __atomic_add_fetch(number, more, __ATOMIC_SEQ_CST); }
static inline long net_get(long *number) { return __atomic_load_n(number, __ATOMIC_SEQ_CST); }
static inline long net_swap(long *number, long value) { return __atomic_exchange_n(number, value, __ATOMIC_SEQ_CST); }

static inline double net_monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#endif
