/* The flow in C: what the same system calls cost without Python.
 *
 * Reads lines of "case count" and answers each with the nanoseconds that one operation took. The system calls,
 * with their flags and options, are those that harken makes: `strace -f python benchmarks/run.py --case listen` shows
 * them side by side. A drain answers first with its port, and waits for a line that says that the connections are
 * queued. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int checked(int result, const char *call)
{
    if (result < 0) {
        perror(call);
        exit(1);
    }
    return result;
}

static struct addrinfo *resolved(const char *host, const char *port, int family)
{
    struct addrinfo hints, *found;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = family;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_protocol = IPPROTO_TCP;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV | (host ? AI_NUMERICHOST : 0);
    int error = getaddrinfo(host, port, &hints, &found);
    if (error) {
        fprintf(stderr, "getaddrinfo: %s\n", gai_strerror(error));
        exit(1);
    }
    return found;
}

static int listener(void)
{
    int one = 1;
    struct addrinfo *a = resolved("127.0.0.1", "0", AF_UNSPEC);
    int s = checked(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol), "socket");
    checked(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "setsockopt");
    checked(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "setsockopt");
    checked(bind(s, a->ai_addr, a->ai_addrlen), "bind");
    freeaddrinfo(a);
    checked(listen(s, INT_MAX), "listen");
    return s;
}

/* ---------------------------------------------------------------- the cases: total nanoseconds */

static double numeric(int count)
{
    double start = now();
    for (int n = 0; n < count; n++)
        freeaddrinfo(resolved("127.0.0.1", "27015", AF_INET));
    return now() - start;
}

static double numeric_decoded(int count)
{
    char text[INET_ADDRSTRLEN];
    double start = now();
    for (int n = 0; n < count; n++) {
        struct addrinfo *a = resolved("127.0.0.1", "27015", AF_INET);
        for (struct addrinfo *each = a; each; each = each->ai_next)
            inet_ntop(AF_INET, &((struct sockaddr_in *)each->ai_addr)->sin_addr, text, sizeof text);
        freeaddrinfo(a);
    }
    return now() - start;
}

static double wildcard(int count)
{
    double start = now();
    for (int n = 0; n < count; n++) {
        struct addrinfo *four = resolved(NULL, "27015", AF_INET);
        struct addrinfo *six = resolved(NULL, "27015", AF_INET6);
        freeaddrinfo(four);
        freeaddrinfo(six);
    }
    return now() - start;
}

static double listen_close(int count)
{
    double start = now();
    for (int n = 0; n < count; n++)
        close(listener());
    return now() - start;
}

static double drained(int count, int flags, int ask_peer)
{
    int s = listener(), on = 1, done = 0;
    int *taken = calloc((size_t)count, sizeof *taken);
    char line[64];
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    checked(ioctl(s, FIONBIO, &on), "ioctl");
    checked(getsockname(s, (struct sockaddr *)&peer, &length), "getsockname");
    printf("%d\n", ntohs(((struct sockaddr_in *)&peer)->sin_port));
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(1);

    double start = now();
    while (1) {
        length = sizeof peer;
        int c = accept4(s, ask_peer ? (struct sockaddr *)&peer : NULL, ask_peer ? &length : NULL, flags);
        if (c < 0)
            break;
        if (done < count)
            taken[done] = c;
        done++;
    }
    double took = now() - start;

    if (errno != EAGAIN || done != count) {
        fprintf(stderr, "drained %d of %d: %s\n", done, count, strerror(errno));
        exit(1);
    }
    while (done)
        close(taken[--done]);
    free(taken);
    close(s);
    return took;
}

static double drain_many(int count) { return drained(count, SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }
static double drain_one(int count) { return drained(count, SOCK_CLOEXEC, 1); }

static const struct {
    const char *name;
    double (*run)(int count);
} CASES[] = {
    {"numeric", numeric},
    {"numeric_named", numeric}, /* which is how C has it anyway */
    {"numeric_decoded", numeric_decoded},
    {"wildcard", wildcard},
    {"listen", listen_close},
    {"steps", listen_close},
    {"drain_many", drain_many},
    {"drain_many_nonblocking", drain_many},
    {"drain_one", drain_one},
};

int main(void)
{
    char line[64], name[32];
    int count;
    while (fgets(line, sizeof line, stdin)) {
        double total = -1;
        if (sscanf(line, "%31s %d", name, &count) != 2 || count < 1)
            return 2;
        for (size_t n = 0; n < sizeof CASES / sizeof *CASES; n++)
            if (strcmp(name, CASES[n].name) == 0)
                total = CASES[n].run(count);
        if (total < 0)
            return 2;
        printf("%.3f\n", total / count);
        fflush(stdout);
    }
    return 0;
}
