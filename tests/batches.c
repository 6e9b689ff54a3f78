/* The accept engines on their own, in C, through the functions of engine.h: each one must take the same, in
 * the same order, and leave the rest in the kernel's queue. Prints "ok" after the names of the engines that could be
 * opened, or the line that was not as it should be. Built and run by test_platform.py. */
#if __has_include("platform/engines/engine.h") && !defined(_WIN32)
#if defined(__linux__) && !defined(HARKEN_KQUEUE) && __has_include(<linux/seccomp.h>) /* see containers() */
/* Calls of io_uring_enter(2) can be made to fail: see broken(). */
static long broken(long number, ...);
#include <unistd.h>
static long (*const whole)(long, ...) = syscall;
#define syscall broken
#endif
/* What another thread does while a wake-up is being read: see woken_while_calmed(). */
#include <unistd.h>
static ssize_t hooked(int fd, void *data, size_t size);
#define read hooked
#include "platform/engines/engine.h"
#undef read

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#if __has_include(<linux/seccomp.h>)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#endif

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error %d)\n", name, __LINE__, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

/* io_uring's own work interrupts a wait as signals do. */
static int waits(net_engine_t *engine, int milliseconds, int *outcome)
{
    int error;
    do
        error = net_engine_wait(engine, milliseconds, outcome);
    while (error == NET_EINTR);
    return error;
}

static struct {
    net_engine_t *engine; /* to be woken, once */
    int after;
} meanwhile;

static ssize_t hooked(int fd, void *data, size_t size)
{
    net_engine_t *engine = meanwhile.engine;
    ssize_t got;
    meanwhile.engine = NULL;
    if (engine && !meanwhile.after)
        net_engine_wake(engine);
    got = read(fd, data, size);
    if (engine && meanwhile.after)
        net_engine_wake(engine);
    return got;
}

enum { MANY = 400, SOON = 5000 };
static const char *name;
static net_socket_t clients[MANY], taken[MANY];
static int connected, from[MANY], got;

static net_socket_t listener(int family, net_address_t *address, net_length_t *length)
{
    net_socket_t s;
    memset(address, 0, sizeof *address);
    address->any.sa_family = (unsigned char)family;
    *length = family == AF_INET ? sizeof address->in : sizeof address->any.sa_family;
    if (family == AF_INET)
        address->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(net_socket(family, SOCK_STREAM, 0, &s) == 0);
    CHECK(bind(s, &address->any, *length) == 0);
    CHECK(listen(s, MANY) == 0);
    *length = sizeof *address;
    CHECK(getsockname(s, &address->any, length) == 0);
    return s;
}

/* So many more connections, in the queue when this returns. */
static void join(const net_address_t *address, net_length_t length, int count)
{
    while (count-- > 0) {
        CHECK(connected < MANY);
        CHECK(net_socket(address->any.sa_family, SOCK_STREAM, 0, &clients[connected]) == 0);
        CHECK(connect(clients[connected++], &address->any, length) == 0);
    }
}

static void leave(void)
{
    while (connected > 0)
        net_close(clients[--connected]);
}

static void drop(void)
{
    while (got > 0)
        net_close(taken[--got]);
}

/* Takes up to `limit`, and must get `count`. */
static void take(net_engine_t *engine, int limit, int count, int error)
{
    CHECK(net_engine_take(engine, limit, 1, taken, from, &got) == error);
    CHECK(got == count);
    CHECK(engine->full == (got == limit));
}

static int open_descriptors(void)
{
    int count = 0;
    DIR *all = opendir("/dev/fd");
    CHECK(all != NULL);
    while (readdir(all))
        count++;
    closedir(all);
    return count;
}

static int blocks(net_socket_t s)
{
    int on = -1;
    CHECK(net_mode(s, &on) == 0);
    return on;
}

static int port_of(net_socket_t s)
{
    net_address_t address;
    socklen_t length = sizeof address;
    CHECK(getpeername(s, &address.any, &length) == 0);
    return address.in.sin_port;
}

static int own_port_of(net_socket_t s)
{
    net_address_t address;
    socklen_t length = sizeof address;
    CHECK(getsockname(s, &address.any, &length) == 0);
    return address.in.sin_port;
}

/* How many a program would inherit that exec() starts. */
static int inheritable(void)
{
    int s, count = 0;
    for (s = 0; s < 256; s++) {
        int flags = fcntl(s, F_GETFD);
        count += flags >= 0 && !(flags & FD_CLOEXEC);
    }
    return count;
}

/* What is taken is what came first, never more than was asked for, whatever was asked for before. */
static void batches(int family)
{
    static const int limits[] = {2, 64, 1, 1, 65, 3, 128, 1, 130, 5};
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(family, &address, &length);
    int n, k, next = 0, on = 0, before = inheritable();
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    CHECK(inheritable() == before);
    CHECK(strcmp(engine->calls->name, name) == 0);
    take(engine, 5, 0, NET_EWOULDBLOCK);
    join(&address, length, MANY);
    for (n = 0; n < 10; n++) {
        take(engine, limits[n], limits[n], 0);
        for (k = 0; k < got; k++, next++) {
            CHECK(from[k] == 0);
            CHECK(!blocks(taken[k]));
            CHECK(net_is_inheritable(taken[k], &on) == 0 && !on);
            CHECK(family != AF_INET || port_of(taken[k]) == own_port_of(clients[next]));
        }
        drop();
    }
    CHECK(next == MANY);
    take(engine, 64, 0, NET_EWOULDBLOCK);

    /* Few at a time, with a limit that shrinks and grows. */
    leave();
    for (n = 0; n < 60; n++) {
        int limit = n * 29 % 64 + 1, wait = n * 13 % 5;
        join(&address, length, wait + 1);
        take(engine, limit, wait + 1 < limit ? wait + 1 : limit, 0);
        on = wait + 1 - got;
        drop();
        if (on)
            take(engine, on, on, 0);
        drop();
        leave();
    }
    join(&address, length, 1);
    CHECK(net_engine_take(engine, 1, 0, taken, from, &got) == 0 && got == 1);
    CHECK(blocks(taken[0]));
    drop();
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* The mode belongs to all who share the listener: somebody may have made it block. */
static void a_listener_that_blocks(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    CHECK(net_blocking(s, 1) == 0);
    take(engine, 3, 0, NET_EWOULDBLOCK);
    CHECK(net_blocking(s, 1) == 0);
    join(&address, length, 2);
    take(engine, 3, 2, 0);
    drop();
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* All or none: the first listener was watched already when the second was refused, and wakes nobody. */
static void half_armed(void)
{
#ifdef __linux__
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t both[2];
    int outcome;
    both[0] = listener(AF_INET, &address, &length);
    both[1] = open("/dev/null", O_RDONLY | O_CLOEXEC); /* which epoll does not watch */
    CHECK(both[1] >= 0 && net_engine_open(name, both, 2, &engine) == 0);
    if (net_engine_arm(engine, 1) != 0) {
        CHECK(!engine->armed);
        join(&address, length, 1);
        CHECK(waits(engine, 20, &outcome) == 0 && outcome == NET_TIMED_OUT);
        net_engine_remove(engine, 1);
        net_engine_calm(engine);
        CHECK(net_engine_arm(engine, 1) == 0); /* and the next attempt finds nothing in its way */
        CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_READY);
        take(engine, 3, 1, 0);
        drop();
        leave();
    }
    net_engine_close(engine);
    net_close(both[0]);
    close(both[1]);
#endif
}

static void several(void)
{
    enum { COUNT = 4 };
    net_engine_t *engine;
    net_address_t address[COUNT];
    net_length_t length[COUNT];
    net_socket_t s[COUNT];
    int n, share[COUNT] = {0}, outcome;
    for (n = 0; n < COUNT; n++)
        s[n] = listener(AF_INET, &address[n], &length[n]);
    CHECK(net_engine_open(name, s, COUNT, &engine) == 0);
    CHECK(net_engine_arm(engine, 1) == 0);
    join(&address[0], length[0], 100);
    join(&address[2], length[2], 3);
    join(&address[3], length[3], 20);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_READY);
    take(engine, 30, 30, 0);
    for (n = 0; n < got; n++) {
        share[from[n]]++;
        CHECK(own_port_of(taken[n]) == address[from[n]].in.sin_port);
    }
    CHECK(share[0] >= 10 && share[1] == 0 && share[2] == 3 && share[3] >= 10);
    drop();
    net_engine_remove(engine, 0);
    net_close(s[0]);
    take(engine, 64, 20 - share[3], 0);
    drop();
    take(engine, 64, 0, NET_EWOULDBLOCK);
    leave();
    net_engine_close(engine);
    for (n = 1; n < COUNT; n++)
        net_close(s[n]);
}

/* The descriptors end in the middle of a batch: what was taken is handed out, the rest waits. */
static void no_descriptors(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length), copy;
    struct rlimit before, now;
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    join(&address, length, 10);
    CHECK(net_duplicate(s, &copy) == 0);
    net_close(copy); /* the next number */
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    now = before;
    now.rlim_cur = (rlim_t)copy + 4;
    CHECK(setrlimit(RLIMIT_NOFILE, &now) == 0);
    take(engine, 8, 4, 0);
    CHECK(net_engine_take(engine, 8, 1, &taken[4], from, &got) == EMFILE && got == 0);
    CHECK(engine->culprit == -1);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    got = 4;
    drop();
    take(engine, 8, 6, 0);
    drop();
    leave();
    net_engine_close(engine);
    net_close(s);
}

static void a_listener_that_is_gone(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s[2];
    int n, error = 0;
    s[0] = listener(AF_INET, &address, &length);
    s[1] = listener(AF_INET, &address, &length);
    CHECK(net_engine_open(name, s, 2, &engine) == 0);
    join(&address, length, 1);
    net_close(s[0]);
    for (n = 0, got = 0; n < 3 && error != NET_EBADF; n++) {
        drop();
        error = net_engine_take(engine, 8, 1, taken, from, &got);
        CHECK(error == NET_EBADF || got == 1);
    }
    CHECK(error == NET_EBADF && engine->culprit == 0);
    drop();
    leave();
    net_engine_close(engine);
    net_close(s[1]);
}

static void *take_one(void *engine)
{
    take((net_engine_t *)engine, 1, 1, 0);
    return NULL;
}

/* One thread at a time, but any, also when the first is over. */
static void threads(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    pthread_t thread;
    int n;
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    join(&address, length, 6);
    for (n = 0; n < 3; n++) {
        CHECK(pthread_create(&thread, NULL, take_one, engine) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        drop();
        take(engine, 1, 1, 0);
        drop();
    }
    take(engine, 1, 0, NET_EWOULDBLOCK);
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* A child that abandons the engine has no part in what the parent does. */
static void forks(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int status, outcome, n, strangers[16];
    pid_t child;
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    CHECK(net_engine_arm(engine, 1) == 0);
    join(&address, length, 5);
    take(engine, 2, 2, 0);
    drop();
    fflush(NULL);
    child = fork();
    if (child == 0) {
        for (n = 0; n < 16; n++) /* a kqueue's number is free now */
            CHECK((strangers[n] = dup(s)) >= 0);
        net_engine_abandon(engine);
        CHECK(net_engine_open(name, &s, 1, &engine) == 0);
        CHECK(net_engine_arm(engine, 1) == 0);
        take(engine, 1, 1, 0);
        drop();
        net_engine_close(engine);
        for (n = 0; n < 16; n++)
            CHECK(net_close(strangers[n]) == 0);
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_READY);
    take(engine, 9, 2, 0);
    drop();
    leave();
    net_engine_close(engine);
    net_close(s);
}

static void waiting(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int outcome;
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    join(&address, length, 2);
    CHECK(waits(engine, 0, &outcome) == 0 && outcome == NET_TIMED_OUT); /* not armed */
    CHECK(net_engine_arm(engine, 1) == 0);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_READY);
    CHECK(net_engine_arm(engine, 0) == 0);
    net_engine_calm(engine);
    CHECK(net_engine_timer(engine, 1) == 0);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_WOKEN);
    net_engine_calm(engine);
    net_engine_wake(engine);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_WOKEN);
    take(engine, 1, 1, 0); /* armed or not */
    drop();
    net_engine_stop(engine);
    take(engine, 1, 0, NET_EWOULDBLOCK);
    CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_WOKEN);
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* A wake-up that comes while an earlier one is being calmed, right before or after its byte is read, does not make the
 * engine deaf to those that come later. The engines of poll and kqueue read no byte there without a lock. */
static void woken_while_calmed(void)
{
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    net_engine_t *engine;
    int outcome;
    if (strcmp(name, "accept4") != 0 && strcmp(name, "io_uring") != 0) {
        net_close(s);
        return;
    }
    CHECK(net_engine_open(name, &s, 1, &engine) == 0);
    for (meanwhile.after = 0; meanwhile.after < 2; meanwhile.after++) {
        net_engine_wake(engine);
        meanwhile.engine = engine;
        net_engine_calm(engine);
        CHECK(meanwhile.engine == NULL);
        net_engine_wake(engine);
        CHECK(waits(engine, SOON, &outcome) == 0 && outcome == NET_WOKEN);
        net_engine_calm(engine);
        CHECK(waits(engine, 0, &outcome) == 0 && outcome == NET_TIMED_OUT);
    }
    net_engine_close(engine);
    net_close(s);
}

/* ---------------------------------------------------------------- what a container may forbid */

#if defined(SECCOMP_SET_MODE_FILTER) && defined(NET_URING)
static void forbid(unsigned number)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void in_a_child(void (*test)(void))
{
    int status;
    pid_t child;
    fflush(NULL);
    child = fork();
    if (child == 0) {
        test();
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void never_allowed(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int before = open_descriptors();
    forbid(SYS_io_uring_setup);
    CHECK(net_engine_open("io_uring", &s, 1, &engine) == EPERM && engine == NULL);
    CHECK(open_descriptors() == before);
    CHECK(net_engine_open(NULL, &s, 1, &engine) == 0);
    CHECK(strcmp(engine->calls->name, "accept4") == 0);
    net_engine_close(engine);
    net_close(s);
}

static void not_even_once(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int before = open_descriptors();
    net_swap(&net_uring_proven, 0);
    forbid(SYS_io_uring_enter);
    CHECK(net_engine_open("io_uring", &s, 1, &engine) == EPERM);
    CHECK(open_descriptors() == before);
    net_close(s);
}

static void forbidden_later(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    CHECK(net_engine_open("io_uring", &s, 1, &engine) == 0);
    CHECK(net_engine_arm(engine, 1) == 0);
    join(&address, length, 7);
    take(engine, 3, 3, 0);
    drop();
    forbid(SYS_io_uring_enter);
    take(engine, 2, 2, 0);
    CHECK(((net_uring_t *)engine)->ring == -1 && strcmp(engine->name, "accept4") == 0);
    drop();
    take(engine, 9, 2, 0);
    drop();
    leave();
    net_engine_close(engine);
    net_close(s);
}

static void no_locked_memory(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    struct rlimit none = {0, 0};
    int before = open_descriptors(), error;
    CHECK(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
    CHECK(geteuid() != 0 || setuid(65534) == 0);
    error = net_engine_open("io_uring", &s, 1, &engine); /* whether rings count depends on the kernel */
    CHECK(error == 0 || (error == ENOMEM && open_descriptors() == before));
    if (error == 0)
        net_engine_close(engine);
    CHECK(net_engine_open(NULL, &s, 1, &engine) == 0);
    CHECK(strcmp(engine->calls->name, error ? "accept4" : "io_uring") == 0);
    net_engine_close(engine);
    net_close(s);
}

/* ---------------------------------------------------------------- what io_uring_enter(2) may fail with */

static struct {
    int calls;   /* of io_uring_enter(2) */
    int well;    /* so many succeed before the first that fails */
    int failing; /* so many fail, then all are well again; negative: all */
    int error;   /* 0: the kernel takes one request less than it is given */
} plan;

static long broken(long number, ...)
{
    va_list list;
    long a[6];
    int n;
    va_start(list, number);
    for (n = 0; n < 6; n++)
        a[n] = va_arg(list, long);
    va_end(list);
    if (number == SYS_io_uring_enter) {
        plan.calls++;
        if (plan.well > 0) {
            plan.well--;
        } else if (plan.failing != 0) {
            plan.failing -= plan.failing > 0;
            if (plan.error) {
                errno = plan.error;
                return -1;
            }
            a[1] -= a[1] > 1;
        }
    }
    return whole(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void plan_for(int well, int failing, int error)
{
    plan.calls = 0;
    plan.well = well;
    plan.failing = failing;
    plan.error = error;
}

/* Four of nine, then the rest: each is handed out once, and nothing is left open. `calls`: what the first batch costs, or
 * -1. */
static void none_lost(int well, int failing, int error, int calls, const char *after)
{
    net_engine_t *engine;
    int handed_out[9] = {0};
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int before, seen = 0, n, m, outcome, opened = net_engine_open("io_uring", &s, 1, &engine);
    CHECK(opened == 0);
    CHECK(net_engine_arm(engine, 1) == 0);
    before = open_descriptors();
    join(&address, length, 9);
    plan_for(well, failing, error);
    for (n = 0; n < 64 && seen < 9; n++) {
        int first = net_engine_take(engine, 4, 1, taken, from, &got);
        CHECK(first == (got ? 0 : NET_EWOULDBLOCK));
        if (n == 0)
            CHECK(calls < 0 || plan.calls == calls);
        for (m = 0; m < got; m++) {
            int port = port_of(taken[m]), which = 0;
            while (which < 9 && own_port_of(clients[which]) != port)
                which++;
            CHECK(which < 9 && handed_out[which]++ == 0 && from[m] == 0);
            seen++;
        }
        drop();
        if (seen < 9) /* whoever sleeps is told that there is more */
            CHECK(waits(engine, SOON, &outcome) == 0 && outcome != NET_TIMED_OUT);
        net_engine_calm(engine);
    }
    CHECK(seen == 9);
    CHECK(strcmp(engine->name, after) == 0);
    plan_for(0, 0, 0);
    CHECK(open_descriptors() == before + (strcmp(after, "io_uring") ? 9 - 2 : 9)); /* the clients; no ring, no eventfd */
    take(engine, 4, 0, NET_EWOULDBLOCK);
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* The last connection of a full batch by a second call, as with a kernel that does not do our three requests at once.
 * The one that cannot be fetched, ever, is lost to the kernel, and told; no other is. */
static void fetched_never(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int seen = 0, n;
    CHECK(net_engine_open("io_uring", &s, 1, &engine) == 0);
    CHECK(net_engine_arm(engine, 1) == 0);
    join(&address, length, 9);
    plan_for(1, -1, ENOMEM);
    for (n = 0; n < 2 * NET_URING_PATIENCE && ((net_uring_t *)engine)->ring >= 0; n++) {
        (void)net_engine_take(engine, 4, 1, taken, from, &got);
        seen += got;
        drop();
    }
    plan_for(0, 0, 0);
    CHECK(seen == 8 && strcmp(engine->name, "accept4") == 0);
    CHECK(engine->failures.error[0] == ENOMEM && engine->failures.count[0] == 1);
    leave();
    net_engine_close(engine);
    net_close(s);
}

/* It has the mode of the take() that hands it out, not of the one that asked for it. */
static void fetched_later(void)
{
    net_engine_t *engine;
    net_address_t address;
    net_length_t length;
    net_socket_t s = listener(AF_INET, &address, &length);
    int nonblocking, n, blocks;
    for (nonblocking = 0; nonblocking < 2; nonblocking++) {
        CHECK(net_engine_open("io_uring", &s, 1, &engine) == 0);
        CHECK(net_engine_arm(engine, 1) == 0);
        join(&address, length, 9);
        plan_for(1, -1, ENOMEM);
        CHECK(net_engine_take(engine, 4, !nonblocking, taken, from, &got) == 0 && got == 3);
        drop();
        plan_for(0, 0, 0);
        CHECK(net_engine_take(engine, 4, nonblocking, taken, from, &got) == 0 && got == 4);
        for (n = 0; n < got; n++)
            CHECK(net_mode(taken[n], &blocks) == 0 && blocks == !nonblocking);
        drop();
        take(engine, 4, 2, 0);
        leave();
        net_engine_close(engine);
    }
    net_close(s);
}

static void failing_rings(void)
{
    static const int passing[] = {EAGAIN, EBUSY, ENOMEM, EBADR};
    static const int lasting[] = {EPERM, ENOSYS, EINVAL};
    size_t n;
    CHECK(net_get(&net_uring_proven) == 1); /* or the next would test another kernel's way */
    none_lost(0, 0, 0, 1, "io_uring"); /* a full batch is one call: there is none that could fail after it */
    for (n = 0; n < sizeof passing / sizeof *passing; n++) {
        none_lost(0, 1, passing[n], -1, "io_uring");
        none_lost(1, 1, passing[n], -1, "io_uring");
        none_lost(0, -1, passing[n], -1, "io_uring");
        none_lost(1, -1, passing[n], -1, "io_uring");
    }
    for (n = 0; n < sizeof lasting / sizeof *lasting; n++) {
        none_lost(0, -1, lasting[n], -1, "accept4");
        none_lost(1, -1, lasting[n], -1, "accept4");
    }
    for (n = 1; n < 40; n += 7) /* a signal is no reason to give up */
        none_lost(0, (int)n, EINTR, (int)n + 1, "io_uring");
    none_lost(0, -1, 0, -1, "io_uring"); /* the kernel always stops before the last request */
    none_lost(0, 1, 0, -1, "io_uring");
    net_swap(&net_uring_proven, 2);
    none_lost(0, 0, 0, 2, "io_uring");
    for (n = 0; n < sizeof passing / sizeof *passing; n++) {
        none_lost(1, 3, passing[n], 5, "io_uring");
        none_lost(1, 10 * NET_URING_TRIES, passing[n], -1, "io_uring");
    }
    none_lost(1, 7, EINTR, 9, "io_uring");
    fetched_never();
    fetched_later();
    net_swap(&net_uring_proven, 1);
}

static void containers(void)
{
    if (strcmp(name, "io_uring") != 0)
        return;
    in_a_child(failing_rings);
    in_a_child(never_allowed);
    in_a_child(not_even_once);
    in_a_child(forbidden_later);
    in_a_child(no_locked_memory);
}
#else
static void containers(void) {}
#endif

int main(void)
{
    int n, before;
    for (n = 0; (name = net_engine_name(n)) != NULL; n++) {
        net_engine_t *engine;
        net_address_t address;
        net_length_t length;
        net_socket_t s = listener(AF_INET, &address, &length);
        int error = net_engine_open(name, &s, 1, &engine);
        net_close(s);
        if (error) {
            printf("no %s here: %s\n", name, strerror(error));
            continue;
        }
        net_engine_close(engine);
        printf("%s\n", name);
        before = open_descriptors();
        batches(AF_INET);
#ifdef __linux__
        batches(AF_UNIX); /* with a name that the kernel finds */
#endif
        a_listener_that_blocks();
        half_armed();
        several();
        no_descriptors();
        a_listener_that_is_gone();
        threads();
        forks();
        waiting();
        woken_while_calmed();
        CHECK(open_descriptors() == before);
        containers();
    }
    puts("ok");
    return 0;
}
#endif
