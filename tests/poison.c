/* A preloaded library (Linux, glibc) that counts the calls which this package makes, and makes chosen ones fail.
 *
 * UDP sockets, which only look whether an address is there, are neither counted nor made to fail.
 *
 *   POISON=bind:2:98,getaddrinfo:1:-11:5   the 2nd bind() fails with errno 98; the 1st getaddrinfo() returns -11
 *                                          (EAI_SYSTEM) with errno 5. `socket:3+:24` fails the 3rd and all after it,
 *                                          `bind:2*:98` every second.
 *   POISON_HOSTS=three=127.0.0.1,::1       getaddrinfo("three") gives these addresses, without a resolver
 *   POISON_GATE=7                          getaddrinfo() of a name waits until a byte can be read from descriptor 7
 *   POISON_REPORT=/path                    at exit, one line a function: its name, calls, failures made here;
 *                                          `lists` and `sockets` are those that were not given back
 *
 * The variables are read at each call, so a program can set them in its own environment when it is ready; and while it
 * runs, poison_count("sockets") tells one number of the report.
 */
#ifdef __linux__
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GETADDRINFO, RESOLVER, FREEADDRINFO, SOCKET, SETSOCKOPT, BIND, LISTEN, ACCEPT4, CLOSE, LISTS, SOCKETS, KINDS };
static const char *const NAMES[KINDS] = {"getaddrinfo", "resolver", "freeaddrinfo", "socket", "setsockopt", "bind",
                                         "listen", "accept4", "close", "lists", "sockets"};
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
    return poisoned(BIND, &code) ? -1 : REAL(bind)(fd, address, length);
}

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

int close(int fd)
{
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
