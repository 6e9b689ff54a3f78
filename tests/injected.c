/* A preloaded library (Linux, glibc) that makes one system call fail: the n-th of its name since it was armed.
 *
 * injected_arm(name, n, how, error, ours) arms it, or with n = 0 only counts; injected_disarm() ends that and tells
 * whether the call came. `how`:
 *
 *   FAIL   the call is not made: -1 and errno; of getaddrinfo `error` is what it returns, and errno, for EAI_SYSTEM, is
 *          in the bytes above the lowest
 *   AFTER  the call is made, and fails all the same: close(2) gives the number back also when it says EINTR, and
 *          connect(2) goes on
 *   SHORT  half of what is asked for is transferred
 *
 * `ours`: calls from this package's compiled modules only; else those of the interpreter, too. What the C library calls
 * for itself, as getaddrinfo() opens files, does not come by here. Memory fails for the compiled modules alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum how { NO, FAIL, AFTER, SHORT };

#define NAMES(X)                                                                                                       \
    X(socket) X(socketpair) X(bind) X(listen) X(accept4) X(connect) X(shutdown) X(close) X(setsockopt) X(getsockopt)    \
    X(getsockname) X(getpeername) X(send) X(sendto) X(sendmsg) X(recv) X(recvfrom) X(recvmsg) X(read) X(write)          \
    X(sendfile) X(poll) X(fcntl) X(ioctl) X(open) X(openat) X(stat) X(lstat) X(fstat) X(fstatat) X(rename)              \
    X(renameat) X(renameat2) X(link) X(linkat) X(unlink) X(unlinkat) X(mkdir) X(rmdir) X(chmod) X(fchmod)               \
    X(fchmodat) X(chown) X(lchown) X(fchown) X(fchownat) X(flock) X(getcwd) X(readlink) X(getrandom) X(dup)             \
    X(getaddrinfo) X(getifaddrs) X(if_nametoindex) X(if_indextoname) X(epoll_create1) X(epoll_ctl) X(epoll_wait)        \
    X(eventfd) X(timerfd_create) X(timerfd_settime) X(mmap) X(malloc) X(calloc) X(opendir) X(uname)                     \
    X(io_uring_setup) X(io_uring_enter) X(io_uring_register) X(pidfd_open) X(pidfd_getfd) X(kcmp)

enum kind {
#define X(name) K_##name,
    NAMES(X) KINDS
#undef X
};
static const char *const names[KINDS] = {
#define X(name) #name,
    NAMES(X)
#undef X
};

static atomic_long counts[KINDS];
static atomic_int counting, armed = -1, came;
static long nth;
static int how_it_fails, with, of_ours;

static int from_us(void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/harken/_") != NULL;
}

static enum how strikes(enum kind kind, void *caller)
{
    if (!counting || ((of_ours || kind == K_malloc || kind == K_calloc) && !from_us(caller)))
        return NO;
    if (++counts[kind] != nth || armed != (int)kind)
        return NO;
    came = 1;
    errno = with;
    return (enum how)how_it_fails;
}

int injected_arm(const char *name, long n, int how, int error, int ours)
{
    counting = 0;
    for (int kind = 0; kind < KINDS; ++kind)
        counts[kind] = 0;
    armed = -1;
    for (int kind = 0; kind < KINDS; ++kind)
        if (strcmp(name, names[kind]) == 0)
            armed = kind;
    nth = n;
    how_it_fails = how;
    with = error;
    of_ours = ours;
    came = 0;
    counting = 1;
    return n == 0 || armed >= 0;
}

int injected_disarm(void)
{
    counting = 0;
    return came;
}

/* The test's own calls in between are nobody's. */
void injected_pause(int on) { counting = !on; }

const char *injected_name(int kind) { return kind < KINDS ? names[kind] : NULL; }
long injected_count(int kind) { return counts[kind]; }

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }
#define CALLER __builtin_return_address(0)

/* A call that returns -1 when it fails. */
#define PLAIN_AS(kind, type, name, parameters, arguments)                                                              \
    type name parameters                                                                                               \
    {                                                                                                                  \
        static type(*call) parameters;                                                                                 \
        enum how how = strikes(K_##kind, CALLER);                                                                       \
        int error = errno;                                                                                              \
        if (how == FAIL)                                                                                               \
            return (type)-1;                                                                                           \
        if (!call)                                                                                                     \
            call = (type(*) parameters)real(#name);                                                                    \
        type result = call arguments;                                                                                  \
        if (how == AFTER) {                                                                                             \
            errno = error;                                                                                              \
            return (type)-1;                                                                                           \
        }                                                                                                              \
        return result;                                                                                                 \
    }
#define PLAIN(type, name, parameters, arguments) PLAIN_AS(name, type, name, parameters, arguments)

/* One that transfers `size` bytes, or half of them. */
#define TRANSFER_AS(kind, name, parameters, arguments, size)                                                           \
    ssize_t name parameters                                                                                            \
    {                                                                                                                  \
        static ssize_t(*call) parameters;                                                                              \
        enum how how = strikes(K_##kind, CALLER);                                                                       \
        if (how == FAIL)                                                                                               \
            return -1;                                                                                                 \
        if (!call)                                                                                                     \
            call = (ssize_t(*) parameters)real(#name);                                                                 \
        if (how == SHORT && size > 1)                                                                                  \
            size /= 2;                                                                                                 \
        return call arguments;                                                                                         \
    }
#define TRANSFER(name, parameters, arguments, size) TRANSFER_AS(name, name, parameters, arguments, size)

PLAIN(int, socket, (int family, int type, int proto), (family, type, proto))
PLAIN(int, socketpair, (int family, int type, int proto, int two[2]), (family, type, proto, two))
PLAIN(int, bind, (int s, const struct sockaddr *name, socklen_t size), (s, name, size))
PLAIN(int, listen, (int s, int backlog), (s, backlog))
PLAIN(int, accept4, (int s, struct sockaddr *name, socklen_t *size, int flags), (s, name, size, flags))
PLAIN(int, connect, (int s, const struct sockaddr *name, socklen_t size), (s, name, size))
PLAIN(int, shutdown, (int s, int side), (s, side))
PLAIN(int, close, (int fd), (fd))
PLAIN(int, setsockopt, (int s, int level, int option, const void *value, socklen_t size),
      (s, level, option, value, size))
PLAIN(int, getsockopt, (int s, int level, int option, void *value, socklen_t *size), (s, level, option, value, size))
PLAIN(int, getsockname, (int s, struct sockaddr *name, socklen_t *size), (s, name, size))
PLAIN(int, getpeername, (int s, struct sockaddr *name, socklen_t *size), (s, name, size))
TRANSFER(send, (int s, const void *data, size_t size, int flags), (s, data, size, flags), size)
TRANSFER(recv, (int s, void *data, size_t size, int flags), (s, data, size, flags), size)
TRANSFER(sendto, (int s, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length),
         (s, data, size, flags, to, length), size)
TRANSFER(recvfrom, (int s, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length),
         (s, data, size, flags, from, length), size)
TRANSFER(read, (int fd, void *data, size_t size), (fd, data, size), size)
TRANSFER(write, (int fd, const void *data, size_t size), (fd, data, size), size)
TRANSFER_AS(sendfile, sendfile, (int out, int in, off_t *at, size_t size), (out, in, at, size), size)
TRANSFER_AS(sendfile, sendfile64, (int out, int in, off_t *at, size_t size), (out, in, at, size), size)
PLAIN(int, poll, (struct pollfd *on, nfds_t count, int milliseconds), (on, count, milliseconds))
PLAIN(int, rename, (const char *from, const char *to), (from, to))
PLAIN(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
PLAIN(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
PLAIN(int, link, (const char *from, const char *to), (from, to))
PLAIN(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
PLAIN(int, unlink, (const char *path), (path))
PLAIN(int, unlinkat, (int at, const char *path, int flags), (at, path, flags))
PLAIN(int, mkdir, (const char *path, mode_t mode), (path, mode))
PLAIN(int, rmdir, (const char *path), (path))
PLAIN(int, chmod, (const char *path, mode_t mode), (path, mode))
PLAIN(int, fchmod, (int fd, mode_t mode), (fd, mode))
PLAIN(int, fchmodat, (int at, const char *path, mode_t mode, int flags), (at, path, mode, flags))
PLAIN(int, chown, (const char *path, uid_t user, gid_t group), (path, user, group))
PLAIN(int, lchown, (const char *path, uid_t user, gid_t group), (path, user, group))
PLAIN(int, fchown, (int fd, uid_t user, gid_t group), (fd, user, group))
PLAIN(int, fchownat, (int at, const char *path, uid_t user, gid_t group, int flags), (at, path, user, group, flags))
PLAIN(int, flock, (int fd, int what), (fd, what))
PLAIN(ssize_t, readlink, (const char *path, char *text, size_t size), (path, text, size))
PLAIN(ssize_t, getrandom, (void *data, size_t size, unsigned flags), (data, size, flags))
PLAIN(int, dup, (int fd), (fd))
PLAIN(int, epoll_create1, (int flags), (flags))
PLAIN(int, epoll_ctl, (int set, int what, int fd, struct epoll_event *event), (set, what, fd, event))
PLAIN(int, epoll_wait, (int set, struct epoll_event *events, int room, int milliseconds),
      (set, events, room, milliseconds))
PLAIN(int, eventfd, (unsigned value, int flags), (value, flags))
PLAIN(int, timerfd_create, (int clock, int flags), (clock, flags))
PLAIN(int, timerfd_settime, (int fd, int flags, const struct itimerspec *when, struct itimerspec *before),
      (fd, flags, when, before))
PLAIN(int, getifaddrs, (struct ifaddrs **list), (list))
#define STAT(kind, name, parameters, arguments) PLAIN_AS(kind, int, name, parameters, arguments)
STAT(stat, stat, (const char *path, struct stat *found), (path, found))
STAT(stat, stat64, (const char *path, struct stat64 *found), (path, found))
STAT(lstat, lstat, (const char *path, struct stat *found), (path, found))
STAT(lstat, lstat64, (const char *path, struct stat64 *found), (path, found))
STAT(fstat, fstat, (int fd, struct stat *found), (fd, found))
STAT(fstat, fstat64, (int fd, struct stat64 *found), (fd, found))
STAT(fstatat, fstatat, (int at, const char *path, struct stat *found, int flags), (at, path, found, flags))
STAT(fstatat, fstatat64, (int at, const char *path, struct stat64 *found, int flags), (at, path, found, flags))

ssize_t sendmsg(int s, const struct msghdr *message, int flags)
{
    enum how how = strikes(K_sendmsg, CALLER);
    struct msghdr less = *message;
    if (how == FAIL)
        return -1;
    if (how == SHORT && less.msg_iovlen > 1)
        less.msg_iovlen /= 2;
    return REAL(sendmsg)(s, &less, flags);
}

ssize_t recvmsg(int s, struct msghdr *message, int flags)
{
    return strikes(K_recvmsg, CALLER) == FAIL ? -1 : REAL(recvmsg)(s, message, flags);
}

/* Those that take one argument more, or none. */
#define ONE_MORE(kind, name, first_type, second_type)                                                                  \
    int name(first_type first, second_type second, ...)                                                                \
    {                                                                                                                  \
        static int (*call)(first_type, second_type, ...);                                                              \
        va_list list;                                                                                                  \
        va_start(list, second);                                                                                        \
        void *more = va_arg(list, void *);                                                                             \
        va_end(list);                                                                                                  \
        if (strikes(K_##kind, CALLER) == FAIL)                                                                         \
            return -1;                                                                                                 \
        if (!call)                                                                                                     \
            call = (int (*)(first_type, second_type, ...))real(#name);                                                 \
        return call(first, second, more);                                                                              \
    }
ONE_MORE(fcntl, fcntl, int, int)
ONE_MORE(fcntl, fcntl64, int, int)
ONE_MORE(ioctl, ioctl, int, unsigned long)
ONE_MORE(open, open, const char *, int)
ONE_MORE(open, open64, const char *, int)

#define OPENAT(name)                                                                                                   \
    int name(int at, const char *path, int flags, ...)                                                                 \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = va_arg(list, mode_t);                                                                            \
        va_end(list);                                                                                                  \
        return strikes(K_openat, CALLER) == FAIL ? -1 : REAL(name)(at, path, flags, mode);                              \
    }
OPENAT(openat)
OPENAT(openat64)

char *getcwd(char *text, size_t size) { return strikes(K_getcwd, CALLER) == FAIL ? NULL : REAL(getcwd)(text, size); }

struct __dirstream *opendir(const char *path)
{
    return strikes(K_opendir, CALLER) == FAIL ? NULL : ((struct __dirstream * (*)(const char *)) real("opendir"))(path);
}

unsigned if_nametoindex(const char *name)
{
    unsigned (*call)(const char *) = (unsigned (*)(const char *))real("if_nametoindex");
    return strikes(K_if_nametoindex, CALLER) == FAIL ? 0 : call(name);
}

char *if_indextoname(unsigned index, char *name)
{
    char *(*call)(unsigned, char *) = (char *(*)(unsigned, char *))real("if_indextoname");
    return strikes(K_if_indextoname, CALLER) == FAIL ? NULL : call(index, name);
}

#define MMAP(name)                                                                                                     \
    void *name(void *at, size_t size, int protection, int flags, int fd, off_t from)                                   \
    {                                                                                                                  \
        static void *(*call)(void *, size_t, int, int, int, off_t);                                                    \
        if (fd >= 0 && strikes(K_mmap, CALLER) == FAIL) /* of a ring; memory of nobody's file is malloc's */            \
            return (void *)-1;                                                                                         \
        if (!call)                                                                                                     \
            call = (void *(*)(void *, size_t, int, int, int, off_t))real(#name);                                       \
        return call(at, size, protection, flags, fd, from);                                                            \
    }
MMAP(mmap)
MMAP(mmap64)

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
void *malloc(size_t size) { return counting && strikes(K_malloc, CALLER) == FAIL ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size)
{
    return counting && strikes(K_calloc, CALLER) == FAIL ? NULL : __libc_calloc(count, size);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    if (strikes(K_getaddrinfo, CALLER) == FAIL) {
        errno = with >> 8 & 0xFFFF;
        return -(with & 0xFF);
    }
    return REAL(getaddrinfo)(node, service, hints, result);
}

long syscall(long number, ...)
{
    va_list list;
    long a[6];
    int kind;
    va_start(list, number);
    for (int n = 0; n < 6; n++)
        a[n] = va_arg(list, long);
    va_end(list);
    switch (number) {
    case SYS_io_uring_setup: kind = K_io_uring_setup; break;
    case SYS_io_uring_enter: kind = K_io_uring_enter; break;
    case SYS_io_uring_register: kind = K_io_uring_register; break;
    case SYS_getrandom: kind = K_getrandom; break;
    case SYS_renameat2: kind = K_renameat2; break;
#ifdef SYS_pidfd_open
    case SYS_pidfd_open: kind = K_pidfd_open; break;
#endif
#ifdef SYS_pidfd_getfd
    case SYS_pidfd_getfd: kind = K_pidfd_getfd; break;
#endif
    case SYS_kcmp: kind = K_kcmp; break;
    default: kind = -1;
    }
    if (kind >= 0 && strikes((enum kind)kind, CALLER) == FAIL)
        return -1;
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
