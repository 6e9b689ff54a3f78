/* A preloaded library (Linux, glibc) that counts the calls which this package makes, and makes chosen ones fail.
 *
 * UDP sockets, which only look whether an address is there, are neither counted nor made to fail. Of netlink's sockets
 * only those count that are made for a question about a unix socket: `netlink`. `exchange` and `noreplace` are
 * renameat2(2) with that flag.
 *
 *   POISON=bind:2:98,getaddrinfo:1:-11:5   the 2nd bind() fails with errno 98; the 1st getaddrinfo() returns -11
 *                                          (EAI_SYSTEM) with errno 5. `socket:3+:24` fails the 3rd and all after it,
 *                                          `bind:2*:98` every second.
 *   POISON_HOSTS=three=127.0.0.1,::1       getaddrinfo("three") gives these addresses, without a resolver
 *   POISON_GATE=7                          getaddrinfo() of a name waits until a byte can be read from descriptor 7
 *   POISON_REPORT=/path                    at exit, one line a function: its name, calls, failures made here;
 *                                          `lists` and `sockets` are those that were not given back
 *
 * io_uring's accept is done here, by accept4(), so that it is counted and fails like any other.
 *
 * poison_hook(function) has a function called before and after each of the calls by which a path is made and removed,
 * with the call's name and whether it is over: somebody else's turn, at each step.
 *
 * The variables are read at each call, so a program can set them in its own environment when it is ready; and while it
 * runs, poison_count("sockets") tells one number of the report.
 */
#ifdef __linux__
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

enum { GETADDRINFO, RESOLVER, FREEADDRINFO, SOCKET, SETSOCKOPT, BIND, LISTEN, ACCEPT4, CLOSE, LISTS, SOCKETS,
       NETLINK, FCHMOD, CHMOD, FCHOWNAT, LINKAT, MKDIRAT, EXCHANGE, NOREPLACE, KINDS };
static const char *const NAMES[KINDS] = {"getaddrinfo", "resolver", "freeaddrinfo", "socket", "setsockopt", "bind",
                                         "listen", "accept4", "close", "lists", "sockets", "netlink", "fchmod", "chmod",
                                         "fchownat", "linkat", "mkdirat", "exchange", "noreplace"};
static atomic_long calls[KINDS], failures[KINDS];
static atomic_char is_socket[65536];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Counts a call of `kind`. Is it the one that is to fail? Then `*code` is what to return, and errno is set. */
static int poisoned(int kind, int *code)
{
    long nth = ++calls[kind];
    const char *at = getenv("POISON");
    size_t length = strlen(NAMES[kind]);
    while (at && *at) {
        if (strncmp(at, NAMES[kind], length) == 0 && at[length] == ':') {
            char *end;
            long from = strtol(at + length + 1, &end, 10);
            int many = *end == '+' || *end == '*';
            if (nth == from || (*end == '+' && nth > from) || (*end == '*' && nth % from == 0)) {
                *code = (int)strtol(end + many + 1, &end, 10);
                errno = *end == ':' ? (int)strtol(end + 1, NULL, 10) : *code;
                ++failures[kind];
                return 1;
            }
        }
        at = strchr(at, ',');
        at = at ? at + 1 : NULL;
    }
    return 0;
}

static void (*hook)(const char *name, int after);

void poison_hook(void (*function)(const char *name, int after)) { hook = function; }

static void step(const char *name, int after)
{
    int number = errno;
    if (hook)
        hook(name, after);
    errno = number;
}

/* The call in between. */
#define STEP(name, call)                                                                                               \
    __extension__({                                                                                                    \
        step(name, 0);                                                                                                 \
        __typeof__(call) came = call;                                                                                  \
        step(name, 1);                                                                                                 \
        came;                                                                                                          \
    })

static int born(int fd)
{
    if (fd >= 0 && fd < 65536) {
        is_socket[fd] = 1;
        ++calls[SOCKETS];
    }
    return fd;
}

/* The addresses that POISON_HOSTS has for `node`, as one list: glibc frees a list node by node, whoever tied it. */
static int canned(const char *addresses, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    struct addrinfo asked = *hints, **tail = result;
    char one[64];
    asked.ai_flags |= AI_NUMERICHOST;
    *result = NULL;
    while (*addresses && *addresses != ' ') {
        size_t length = strcspn(addresses, ", ");
        snprintf(one, sizeof one, "%.*s", (int)length, addresses);
        addresses += length + (addresses[length] == ',');
        if (REAL(getaddrinfo)(one, service, &asked, tail) == 0)
            while (*tail)
                tail = &(*tail)->ai_next;
        else
            *tail = NULL; /* of a family that was not asked for */
    }
    return *result ? 0 : EAI_NONAME;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    const char *hosts = getenv("POISON_HOSTS"), *gate = getenv("POISON_GATE");
    int code, is_name = node && !(hints && hints->ai_flags & AI_NUMERICHOST);
    char byte;
    calls[RESOLVER] += is_name;
    if (poisoned(GETADDRINFO, &code))
        return code;
    if (is_name && gate && read(atoi(gate), &byte, 1) != 1)
        return EAI_FAIL;
    if (is_name && hosts)
        for (const char *at = hosts; at; at = (at = strchr(at, ' ')) ? at + 1 : NULL)
            if (strncmp(at, node, strlen(node)) == 0 && at[strlen(node)] == '=') {
                code = canned(at + strlen(node) + 1, service, hints, result);
                calls[LISTS] += code == 0;
                return code;
            }
    code = REAL(getaddrinfo)(node, service, hints, result);
    calls[LISTS] += code == 0;
    return code;
}

void freeaddrinfo(struct addrinfo *list)
{
    ++calls[FREEADDRINFO];
    --calls[LISTS];
    REAL(freeaddrinfo)(list);
}

int socket(int family, int type, int proto)
{
    int code;
    if ((type & 15) == SOCK_DGRAM)
        return REAL(socket)(family, type, proto);
    if (family == AF_NETLINK)
        return poisoned(NETLINK, &code) ? -1 : REAL(socket)(family, type, proto);
    return poisoned(SOCKET, &code) ? -1 : born(REAL(socket)(family, type, proto));
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
    int code;
    return poisoned(SETSOCKOPT, &code) ? -1 : REAL(setsockopt)(fd, level, option, value, size);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    int code;
    if (fd >= 0 && fd < 65536 && !is_socket[fd])
        return REAL(bind)(fd, address, length);
    return poisoned(BIND, &code) ? -1 : STEP("bind", REAL(bind)(fd, address, length));
}

int fchmod(int fd, mode_t mode)
{
    int code;
    return poisoned(FCHMOD, &code) ? -1 : REAL(fchmod)(fd, mode);
}

int chmod(const char *path, mode_t mode)
{
    int code;
    return poisoned(CHMOD, &code) ? -1 : STEP("chmod", REAL(chmod)(path, mode));
}

int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    int code;
    return poisoned(CHMOD, &code) ? -1 : STEP("fchmodat", REAL(fchmodat)(folder, path, mode, flags));
}

int fchownat(int folder, const char *path, uid_t owner, gid_t group, int flags)
{
    int code;
    return poisoned(FCHOWNAT, &code) ? -1 : STEP("fchownat", REAL(fchownat)(folder, path, owner, group, flags));
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    int code;
    return poisoned(LINKAT, &code) ? -1 : STEP("linkat", REAL(linkat)(from, old, to, new, flags));
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    int code;
    return poisoned(MKDIRAT, &code) ? -1 : STEP("mkdirat", REAL(mkdirat)(folder, path, mode));
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return address->sa_family == AF_UNIX ? STEP("connect", REAL(connect)(fd, address, length))
                                         : REAL(connect)(fd, address, length);
}

int unlinkat(int folder, const char *path, int flags)
{
    return STEP("unlinkat", REAL(unlinkat)(folder, path, flags));
}

int renameat(int from, const char *old, int to, const char *new)
{
    return STEP("renameat", REAL(renameat)(from, old, to, new));
}

int fstatat(int folder, const char *path, struct stat *found, int flags)
{
    return folder == AT_FDCWD ? REAL(fstatat)(folder, path, found, flags)
                              : STEP("fstatat", REAL(fstatat)(folder, path, found, flags));
}

#ifdef __USE_LARGEFILE64
int fstatat64(int folder, const char *path, struct stat64 *found, int flags)
{
    return folder == AT_FDCWD ? REAL(fstatat64)(folder, path, found, flags)
                              : STEP("fstatat", REAL(fstatat64)(folder, path, found, flags));
}
#endif

int listen(int fd, int backlog)
{
    int code;
    return poisoned(LISTEN, &code) ? -1 : REAL(listen)(fd, backlog);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int code;
    return poisoned(ACCEPT4, &code) ? -1 : born(REAL(accept4)(fd, address, length, flags));
}

/* ---------------------------------------------------------------- io_uring */

#ifdef IORING_ACCEPT_MULTISHOT
enum { RINGS = 65536 };
static struct ring {
    struct io_uring_params params;
    char *memory;
    struct io_uring_sqe *entries;
    struct io_uring_cqe aside; /* the completion that found no room */
    int has_aside;
} *rings[RINGS];

static unsigned *at(struct ring *ring, unsigned offset) { return (unsigned *)(void *)(ring->memory + offset); }

static int complete(struct ring *ring, int result, unsigned flags)
{
    struct io_uring_cqe *completions = (void *)at(ring, ring->params.cq_off.cqes);
    unsigned tail = *at(ring, ring->params.cq_off.tail), entries = ring->params.cq_entries;
    if (tail - *at(ring, ring->params.cq_off.head) >= entries)
        return 0;
    memset(&completions[tail & (entries - 1)], 0, sizeof *completions);
    completions[tail & (entries - 1)].res = result;
    completions[tail & (entries - 1)].flags = flags;
    *at(ring, ring->params.cq_off.tail) = tail + 1;
    return 1;
}

static void set_aside(struct ring *ring, int result)
{
    ring->has_aside = !complete(ring, result, 0);
    ring->aside.res = result;
}

/* What the last one comes to, whose completion is written when all requests of the call were made. */
static int ring_accept(struct ring *ring, const struct io_uring_sqe *entry)
{
    struct pollfd on = {.fd = entry->fd, .events = POLLIN};
    int taken;
    do {
        taken = poll(&on, 1, 0) == 0 ? -EAGAIN : accept4(entry->fd, NULL, NULL, (int)entry->accept_flags);
        if (taken == -1)
            taken = -errno;
    } while (taken >= 0 && complete(ring, taken, IORING_CQE_F_MORE));
    return taken;
}

static void ring_forget(int fd)
{
    struct ring *ring = fd >= 0 && fd < RINGS ? rings[fd] : NULL;
    if (ring == NULL)
        return;
    rings[fd] = NULL;
    munmap(ring->memory, ring->params.cq_off.cqes + ring->params.cq_entries * sizeof(struct io_uring_cqe));
    munmap(ring->entries, ring->params.sq_entries * sizeof *ring->entries);
    free(ring);
}

static void ring_born(int fd, const struct io_uring_params *params)
{
    struct ring *ring = calloc(1, sizeof *ring);
    size_t size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    ring->params = *params;
    ring->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ring->entries = mmap(NULL, params->sq_entries * sizeof *ring->entries, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                         IORING_OFF_SQES);
    rings[fd] = ring;
}

static long ring_enter(struct ring *ring, unsigned submitted)
{
    unsigned n, mask = ring->params.sq_entries - 1;
    int last = 0, accepts = 0;
    for (n = 0; n < submitted; n++) {
        struct io_uring_sqe *entry = &ring->entries[(*at(ring, ring->params.sq_off.head))++ & mask];
        void *data = (void *)(uintptr_t)entry->addr;
        if (entry->opcode == IORING_OP_ACCEPT) {
            last = ring_accept(ring, entry);
            accepts++;
        } else if (entry->opcode == IORING_OP_WRITE) {
            if (write(entry->fd, data, entry->len) < 0)
                abort();
        } else if (entry->opcode == IORING_OP_READ) {
            if (read(entry->fd, data, entry->len) < 0)
                abort();
        } else {
            set_aside(ring, 0);
        }
    }
    if (accepts)
        set_aside(ring, last);
    if (submitted == 0 && ring->has_aside)
        set_aside(ring, ring->aside.res);
    return submitted;
}
#endif

long syscall(long number, ...)
{
    va_list list;
    long a[6], result;
    va_start(list, number);
    for (int n = 0; n < 6; n++)
        a[n] = va_arg(list, long);
    va_end(list);
#ifdef IORING_ACCEPT_MULTISHOT
    if (number == SYS_io_uring_enter && a[0] >= 0 && a[0] < RINGS && rings[a[0]])
        return ring_enter(rings[a[0]], (unsigned)a[1]);
#endif
#ifdef SYS_renameat2
    int code;
    if (number == SYS_renameat2 && poisoned((unsigned)a[4] == 2 ? EXCHANGE : NOREPLACE, &code))
        return -1;
    if (number == SYS_renameat2)
        return STEP("renameat2", REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4]));
#endif
    result = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
#ifdef IORING_ACCEPT_MULTISHOT
    if (number == SYS_io_uring_setup && result >= 0 && result < RINGS)
        ring_born((int)result, (const struct io_uring_params *)a[1]);
#endif
    return result;
}

int close(int fd)
{
#ifdef IORING_ACCEPT_MULTISHOT
    ring_forget(fd);
#endif
    if (fd >= 0 && fd < 65536 && is_socket[fd]) {
        is_socket[fd] = 0;
        ++calls[CLOSE];
        --calls[SOCKETS];
    }
    return REAL(close)(fd);
}

long poison_count(const char *name)
{
    for (int kind = 0; kind < KINDS; ++kind)
        if (strcmp(name, NAMES[kind]) == 0)
            return calls[kind];
    return -1;
}

__attribute__((destructor)) static void report(void)
{
    const char *path = getenv("POISON_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file)
        return;
    for (int kind = 0; kind < KINDS; ++kind)
        fprintf(file, "%s %ld %ld\n", NAMES[kind], calls[kind], failures[kind]);
    fclose(file);
}
#endif
