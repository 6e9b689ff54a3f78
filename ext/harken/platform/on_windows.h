/* Winsock2. The contract is in net.h. */
#ifndef HARKEN_ON_WINDOWS_H
#define HARKEN_ON_WINDOWS_H

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mstcpip.h>
#include <windows.h>
#include <afunix.h>
#include <limits.h>
#include <string.h>

typedef SOCKET net_socket_t;
typedef int net_length_t;
typedef WSABUF net_buffer_t;

#include "platform/address.h"
#include "platform/no_vsock.h"
#include "platform/options.h"

#define NET_INVALID INVALID_SOCKET
#define NET_WAITS_BY_POLL 1 /* every handle is non-blocking: a call that blocks could be neither woken nor interrupted */
#define NET_WAIT_SLICE 50   /* milliseconds; Ctrl-C does not end WSAPoll(), so the main thread looks for it this often */

#define NET_EAFNOSUPPORT WSAEAFNOSUPPORT
#define NET_EADDRINUSE WSAEADDRINUSE
#define NET_EADDRNOTAVAIL WSAEADDRNOTAVAIL
#define NET_EBADF WSAENOTSOCK
#define NET_ECONNRESET WSAECONNRESET
#define NET_EINPROGRESS WSAEWOULDBLOCK /* what a non-blocking connect() says here */
#define NET_EINTR WSAEINTR
#define NET_EISCONN WSAEISCONN
#define NET_ENOMEM WSAENOBUFS
#define NET_ENOTSUP WSAEOPNOTSUPP
#define NET_EWOULDBLOCK WSAEWOULDBLOCK
#define NET_EPROTONOSUPPORT WSAEPROTONOSUPPORT
#define NET_SYSTEM "Windows"
#define NET_HAS_PROC 0 /* "/proc" is a folder on the current drive, which may be anybody's; Wine shows Linux's there */
#define NET_IPPROTO_MPTCP (-1)
#define NET_EXCLUSIVE_IS_A_CHOICE 1
#define NET_JOINS_LATE 0
#define NET_SETS_BOTH 0
#define NET_TAKES_BOTH 1
#define NET_BUFFER_FACTOR 1
#define NET_FASTOPEN_MOST 1
#define NET_FASTOPEN_EARLY 1
#define NET_EAI_SYSTEM INT_MIN /* Winsock has no such code: every EAI_* is a Winsock error number */

#ifndef IF_NAMESIZE
#define IF_NAMESIZE 256
#endif
#define NET_SOCK_NONBLOCK 0
#define NET_SOCK_CLOEXEC 0
#define NET_AI_NUMERICSERV 0 /* Microsoft's providers do not know it */

#ifndef WSA_FLAG_NO_HANDLE_INHERIT
#define WSA_FLAG_NO_HANDLE_INHERIT 0x80
#endif
#ifndef SOMAXCONN_HINT
#define SOMAXCONN_HINT(n) (-(n))
#endif
#ifndef TCP_KEEPIDLE
#define TCP_KEEPIDLE 3
#define TCP_KEEPCNT 16
#define TCP_KEEPINTVL 17
#endif

#define NET_DONTWAIT 0 /* no handle here blocks */
#define NET_WAITALL MSG_WAITALL
#define NET_NEVER_WAITS MSG_OOB
#define NET_NEVER_GATHERS (MSG_PEEK | MSG_OOB | MSG_PARTIAL) /* with which Winsock refuses MSG_WAITALL in any mode */
#define NET_LIMIT_REACHED WSAETIMEDOUT /* what a blocking call says after SO_RCVTIMEO or SO_SNDTIMEO */

/* The POSIX names of what Winsock calls otherwise. */
#define SHUT_RD SD_RECEIVE
#define SHUT_WR SD_SEND
#define SHUT_RDWR SD_BOTH

/* gai_strerror() of Winsock fills one static buffer for all threads, and may leave the last text in it. */
static inline const char *NET_ERROR_TEXT(int number)
{
    switch (number) {
    case EAI_AGAIN: return "temporary failure in name resolution";
    case EAI_BADFLAGS: return "bad value for flags";
    case EAI_FAIL: return "non-recoverable failure in name resolution";
    case EAI_FAMILY: return "address family not supported";
    case EAI_MEMORY: return "out of memory";
    case EAI_NONAME: return "name or service not known";
    case EAI_SERVICE: return "service not supported for this socket type";
    case EAI_SOCKTYPE: return "socket type not supported";
    case WSANO_DATA: return "the name exists but has no address of this kind";
    default: return "getaddrinfo failed";
    }
}

static inline int net_last_error(void) { return WSAGetLastError(); }

/* There is no fork() here. */
static inline unsigned net_forks(void) { return 0; }

/* Is it started? By us: Winsock counts everybody's. Under a lock, for interpreters start it at the same moment; and a
 * Python that was ended and started again in one process starts it again. */
typedef struct {
    SRWLOCK lock;
    int yes;
} net_started_t;

static inline net_started_t *net_started(void)
{
    static net_started_t started = {SRWLOCK_INIT, 0};
    return &started;
}

/* WSAStartup answers with the error itself. 2.2 is the newest version there is; a library that offers less is refused,
 * and its start undone. `first` is true for the one call that started it, which has the cleanup to arrange. */
static inline int net_startup(int *first)
{
    net_started_t *started = net_started();
    WSADATA data;
    int error = 0;
    *first = 0;
    AcquireSRWLockExclusive(&started->lock);
    if (!started->yes) {
        error = WSAStartup(MAKEWORD(2, 2), &data);
        if (error == 0 && data.wVersion != MAKEWORD(2, 2)) {
            WSACleanup();
            error = WSAVERNOTSUPPORTED;
        }
        *first = started->yes = error == 0;
    }
    ReleaseSRWLockExclusive(&started->lock);
    return error;
}

/* Pairs the one WSAStartup. If it is the last of the process, Winsock closes every socket that is still open. */
static inline void net_cleanup(void)
{
    net_started_t *started = net_started();
    AcquireSRWLockExclusive(&started->lock);
    if (started->yes)
        (void)WSACleanup();
    started->yes = 0;
    ReleaseSRWLockExclusive(&started->lock);
}

/* Nothing to do: whoever waits here has a waker or looks up every NET_WAIT_SLICE; shutdown() is not promised to end a
 * wait. */
static inline void net_nudge(net_socket_t s) { (void)s; }

static inline int net_inheritable(net_socket_t s, int on)
{
    return SetHandleInformation((HANDLE)s, HANDLE_FLAG_INHERIT, on ? HANDLE_FLAG_INHERIT : 0) ? 0
                                                                                              : (int)GetLastError();
}

static inline int net_is_inheritable(net_socket_t s, int *on)
{
    DWORD flags = 0;
    BOOL ok = GetHandleInformation((HANDLE)s, &flags);
    *on = ok && (flags & HANDLE_FLAG_INHERIT) != 0;
    return ok ? 0 : (int)GetLastError();
}

static inline int net_blocking(net_socket_t s, int on)
{
    u_long nonblocking = !on;
    return ioctlsocket(s, (long)FIONBIO, &nonblocking) == 0 ? 0 : WSAGetLastError();
}

/* With SO_LINGER a handle that does not block would not be closed but stay, with WSAEWOULDBLOCK: it blocks, then. */
static inline int net_close(net_socket_t s)
{
    int error;
    if (closesocket(s) == 0)
        return 0;
    error = WSAGetLastError();
    if (error != WSAEWOULDBLOCK || net_blocking(s, 1) != 0)
        return error;
    return closesocket(s) == 0 ? 0 : WSAGetLastError();
}

/* Winsock does not tell. */
static inline int net_mode(net_socket_t s, int *blocks)
{
    *blocks = 0;
    return net_blocking(s, 0);
}

static inline int net_duplicate(net_socket_t s, net_socket_t *copy)
{
    WSAPROTOCOL_INFOW info;
    *copy = INVALID_SOCKET;
    if (WSADuplicateSocketW(s, GetCurrentProcessId(), &info) != 0)
        return WSAGetLastError();
    *copy = WSASocketW(FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, FROM_PROTOCOL_INFO, &info, 0,
                       WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    return *copy == INVALID_SOCKET ? WSAGetLastError() : 0;
}

/* Overlapped is what socket() makes and what asyncio's proactor needs; WSASocketW leaves it out unless asked. */
static inline int net_socket(int family, int type, int proto, net_socket_t *s)
{
    int error;
    *s = WSASocketW(family, type, proto, NULL, 0, WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    if (*s == INVALID_SOCKET)
        return WSAGetLastError();
    if ((error = net_blocking(*s, 0)) != 0) {
        closesocket(*s);
        *s = INVALID_SOCKET;
    }
    return error;
}

/* accept() inherits the listener's non-blocking mode, which every handle here has; but it makes an inheritable handle,
 * and a child that is started before the next line has a copy. Only AcceptEx can do without that gap. */
static inline int net_accept(net_socket_t listener, int nonblocking, struct sockaddr *peer, net_length_t *length,
                             net_socket_t *s)
{
    int error;
    (void)nonblocking;
    *s = accept(listener, peer, length);
    if (*s == INVALID_SOCKET)
        return WSAGetLastError();
    if ((error = net_inheritable(*s, 0)) != 0 || (error = net_blocking(*s, 0)) != 0) {
        closesocket(*s);
        *s = INVALID_SOCKET;
    }
    return error;
}

/* WSAEINVAL: it is not bound. */
static inline int net_has_no_name(int error) { return error == WSAENOTCONN || error == WSAEINVAL; }

/* The connection was reset before accept() could hand it out; Wine says WSAENOTCONN for it. */
static inline int net_died_waiting(int error)
{
    return error == WSAECONNRESET || error == WSAECONNABORTED || error == WSAENOTCONN || error == ERROR_NETNAME_DELETED;
}

/* No firewall speaks by an error here. */
static inline int net_forbidden(int error)
{
    (void)error;
    return 0;
}

/* The process or the system has no handles or no memory left. */
static inline int net_overloaded(int error)
{
    return error == WSAEMFILE || error == WSAENOBUFS || error == WSA_NOT_ENOUGH_MEMORY || error == ERROR_OUTOFMEMORY ||
           error == ERROR_TOO_MANY_OPEN_FILES;
}

static inline int net_connect(net_socket_t s, const struct sockaddr *address, net_length_t length)
{
    return connect(s, address, length) == 0 ? 0 : WSAGetLastError();
}

/* Winsock counts in int. */
static inline int net_clamp(size_t size) { return size > INT_MAX ? INT_MAX : (int)size; }

static inline int net_recv(net_socket_t s, void *data, size_t size, int flags, size_t *done)
{
    int n = recv(s, (char *)data, net_clamp(size), flags);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? WSAGetLastError() : 0;
}

static inline int net_send(net_socket_t s, const void *data, size_t size, int flags, size_t *done)
{
    int n = send(s, (const char *)data, net_clamp(size), flags);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? WSAGetLastError() : 0;
}

/* A stream has no addresses in it, and Winsock does not touch ours then: the length is 0. */
static inline int net_recvfrom(net_socket_t s, void *data, size_t size, int flags, struct sockaddr *address,
                               net_length_t *length, size_t *done)
{
    int n;
    memset(address, 0, (size_t)*length);
    n = recvfrom(s, (char *)data, net_clamp(size), flags, address, length);
    *done = n < 0 ? 0 : (size_t)n;
    if (n < 0)
        return WSAGetLastError();
    if (address->sa_family == AF_UNSPEC)
        *length = 0;
    return 0;
}

static inline int net_sendto(net_socket_t s, const void *data, size_t size, int flags, const struct sockaddr *address,
                             net_length_t length, size_t *done)
{
    int n = sendto(s, (const char *)data, net_clamp(size), flags, address, length);
    *done = n < 0 ? 0 : (size_t)n;
    return n < 0 ? WSAGetLastError() : 0;
}

/* SO_RCVTIMEO or SO_SNDTIMEO in seconds, 0 for none. Winsock keeps milliseconds, and heeds them in calls that block. */
static inline double net_limit(net_socket_t s, int receives)
{
    DWORD time = 0;
    int size = sizeof time;
    if (getsockopt(s, SOL_SOCKET, receives ? SO_RCVTIMEO : SO_SNDTIMEO, (char *)&time, &size) != 0)
        return 0;
    return time / 1e3;
}

/* Does it fit whole? */
static inline int net_buffer(net_buffer_t *buffer, void *data, size_t size)
{
    buffer->buf = (char *)data;
    buffer->len = (ULONG)net_clamp(size);
    return buffer->len == size;
}

static inline int net_sendmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t control_size,
                              int flags, const struct sockaddr *address, net_length_t length, size_t *done)
{
    DWORD sent = 0;
    (void)control;
    (void)address;
    *done = 0;
    if (control_size || length)
        return WSAEOPNOTSUPP; /* stream sockets carry no ancillary data here, and no addresses */
    if (WSASend(s, buffers, (DWORD)count, &sent, (DWORD)flags, NULL, NULL) != 0)
        return WSAGetLastError();
    *done = sent;
    return 0;
}

static inline int net_recvmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t *control_size,
                              int flags, int *told, struct sockaddr *address, net_length_t *length, size_t *done)
{
    DWORD received = 0, how = (DWORD)flags;
    (void)control;
    (void)address;
    *done = 0;
    if (*control_size)
        return WSAEOPNOTSUPP;
    if (WSARecv(s, buffers, (DWORD)count, &received, &how, NULL, NULL) != 0)
        return WSAGetLastError();
    *length = 0;
    *told = (int)how;
    *done = received;
    return 0;
}

static inline int net_control_get(void *control, size_t control_size, size_t *at, int *level, int *type,
                                  const char **data, size_t *size)
{
    (void)control;
    (void)control_size;
    (void)at;
    *level = *type = 0;
    *data = NULL;
    *size = 0;
    return 0;
}

static inline void net_control_drop(void *control, size_t control_size)
{
    (void)control;
    (void)control_size;
}

static inline size_t net_control_space(size_t size) { return size; }
static inline void net_control_put(void *at, int level, int type, const void *data, size_t size)
{
    (void)level;
    (void)type;
    memcpy(at, data, size);
}

#include "platform/wakers/udp.h"

typedef WSAPOLLFD net_pollfd_t;
static inline int net_poll(net_pollfd_t *on, int count, int milliseconds)
{
    return WSAPoll(on, (ULONG)count, milliseconds);
}

static inline void net_pause(int milliseconds) { Sleep((DWORD)milliseconds); }

/* For writing, and so for connecting, by select(): before Windows 10 2004 WSAPoll() never tells of a connect() that
 * failed. A set of one socket has no FD_SETSIZE to mind. */
static inline int net_wait_writable(net_socket_t s, const net_waker_t *waker, int milliseconds, int *outcome)
{
    fd_set pulled, writable, failed;
    struct timeval time;
    int n;
    FD_ZERO(&pulled);
    if (waker)
        pulled.fd_array[pulled.fd_count++] = waker->self;
    FD_ZERO(&writable);
    FD_ZERO(&failed);
    writable.fd_array[writable.fd_count++] = s;
    failed.fd_array[failed.fd_count++] = s;
    time.tv_sec = milliseconds / 1000;
    time.tv_usec = milliseconds % 1000 * 1000;
    n = select(0, waker ? &pulled : NULL, &writable, &failed, milliseconds < 0 ? NULL : &time);
    *outcome = n <= 0 ? NET_TIMED_OUT : waker && pulled.fd_count ? NET_WOKEN : NET_READY;
    return n < 0 ? WSAGetLastError() : 0;
}

/* Without a waker `milliseconds` is NET_WAIT_SLICE at the most; with one it may be -1, for ever. */
static inline int net_wait(net_socket_t s, short events, const net_waker_t *waker, int milliseconds, int *outcome)
{
    WSAPOLLFD on[2];
    int n;
    if (events & POLLOUT)
        return net_wait_writable(s, waker, milliseconds, outcome);
    on[0].fd = s;
    on[0].events = events;
    on[0].revents = 0;
    on[1].fd = waker ? waker->self : INVALID_SOCKET;
    on[1].events = POLLIN;
    on[1].revents = 0;
    n = WSAPoll(on, waker ? 2 : 1, milliseconds);
    *outcome = n <= 0 ? NET_TIMED_OUT : on[1].revents ? NET_WOKEN : NET_READY;
    return n < 0 ? WSAGetLastError() : 0;
}

static inline int net_describe(net_socket_t s, int *family, int *type, int *proto)
{
    WSAPROTOCOL_INFOW info;
    int size = sizeof info;
    *family = *type = *proto = 0;
    memset(&info, 0, sizeof info);
    if (getsockopt(s, SOL_SOCKET, SO_PROTOCOL_INFOW, (char *)&info, &size) != 0)
        return WSAGetLastError();
    *family = info.iAddressFamily;
    *type = info.iSocketType;
    *proto = info.iProtocol;
    return 0;
}

static inline int net_listening(net_socket_t s, int *on)
{
    int size = sizeof *on; /* a single byte is written by some versions */
    *on = 0;
    return getsockopt(s, SOL_SOCKET, SO_ACCEPTCONN, (char *)on, &size) == 0 ? 0 : WSAGetLastError();
}

static inline int net_unbound(int error) { return error == WSAEINVAL; }

/* WSAEACCES: somebody has the port for himself, on this address or on the wildcard; or it is in a range that the system
 * has set aside. */
static inline int net_taken(int error) { return error == WSAEADDRINUSE || error == WSAEACCES; }

/* SO_REUSEADDR is left off: on Windows it lets any process take the port of a live server. SO_EXCLUSIVEADDRUSE is
 * Microsoft's advice to every server: without it another process may bind a more specific address over ours.
 * TCP_NODELAY is inherited by accepted connections here too. */
static inline int net_listener_defaults(net_socket_t s, int family)
{
    int one = 1;
    if (family != AF_INET && family != AF_INET6)
        return 0;
    if (setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (const char *)&one, sizeof one) != 0)
        return WSAGetLastError();
    if (setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&one, sizeof one) != 0)
        return WSAGetLastError();
    return 0;
}

/* Without it, another process may bind a more specific address over ours, or ours over the wildcard. It also refuses a
 * port whose connections have not ended, which is what turning it off is for. */
static inline int net_exclusive(net_socket_t s, int on)
{
    return setsockopt(s, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (const char *)&on, sizeof on) == 0 ? 0 : WSAGetLastError();
}

/* Where Windows lets a socket of the family be made, its loopback address is there too. */
static inline int net_has_family(int family)
{
    (void)family;
    return 0;
}

/* Nothing to do: SO_EXCLUSIVEADDRUSE holds the address from bind() on. */
static inline int net_hold(net_socket_t s, int family, int on)
{
    (void)s;
    (void)family;
    (void)on;
    return 0;
}

/* SOMAXCONN means "what Microsoft finds reasonable", several hundred; a larger wish must be passed as a hint, which is
 * honoured from 200 to 65535. */
static inline int net_backlog(int wished)
{
    if (wished < 0)
        return SOMAXCONN;
    if (wished > 65535)
        wished = 65535;
    return wished > 200 ? SOMAXCONN_HINT(wished) : wished;
}

/* Winsock tells neither. */
static inline int net_queue(net_socket_t s, long *queued, long *limit)
{
    (void)s;
    *queued = *limit = -1;
    return WSAEOPNOTSUPP;
}

static inline int net_drops(net_socket_t s, long *drops)
{
    (void)s;
    *drops = -1;
    return WSAEOPNOTSUPP;
}

/* Windows reads and writes scopes as numbers. */
static inline int net_scope_name(unsigned index, char *name)
{
    (void)index;
    *name = 0;
    return WSAEOPNOTSUPP;
}

/* For a few instructions or system calls, none of which needs the GIL: so it may be waited for with the GIL. */
typedef SRWLOCK net_lock_t;
static inline void net_lock_init(net_lock_t *lock) { InitializeSRWLock(lock); }
static inline void net_lock(net_lock_t *lock) { AcquireSRWLockExclusive(lock); }
static inline void net_unlock(net_lock_t *lock) { ReleaseSRWLockExclusive(lock); }
static inline void net_yield(void) { Sleep(0); }

/* Numbers that threads share, in one order for all of them. `net_add` returns the sum. */
static inline long net_add(long *number, long more) { return InterlockedExchangeAdd(number, more) + more; }
static inline long net_get(long *number) { return InterlockedCompareExchange(number, 0, 0); }
static inline long net_swap(long *number, long value) { return InterlockedExchange(number, value); }

static inline double net_monotonic(void)
{
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

/* What is inherited is what Microsoft says of accept(), and Wine does. Not here: fastopen, which is for clients; tos, which
 * Windows takes and sends 0, for a policy decides; mss, which the SDK names and the documentation does not. */
static const net_option_t net_options[] = {
    NET_BOTH("nodelay", IPPROTO_TCP, TCP_NODELAY, 1),
    NET_BOTH("keepalive", SOL_SOCKET, SO_KEEPALIVE, 1),
    NET_BOTH("keepalive_idle", IPPROTO_TCP, TCP_KEEPIDLE, 0),
    NET_BOTH("keepalive_interval", IPPROTO_TCP, TCP_KEEPINTVL, 0),
    NET_BOTH("keepalive_count", IPPROTO_TCP, TCP_KEEPCNT, 0),
    NET_BOTH("rcvbuf", SOL_SOCKET, SO_RCVBUF, 1),
    NET_BOTH("sndbuf", SOL_SOCKET, SO_SNDBUF, 1),
    {"ttl", IPPROTO_IP, IP_TTL, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 0},
    NET_NO_MORE_OPTIONS,
};

#endif
