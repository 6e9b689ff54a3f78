/* The server of accepting.py in C, with epoll and accept4, as small as it can be: accept, read, write, close.
   accepting_server LISTENERS BACKLOG. It prints its ports, and obeys the lines that accepting_servers.py tells of. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int set, first, last; /* the listeners are the descriptors from first to last */

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static int taken_from(int listener) { return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); }

static int listener(int backlog)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(name);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&name, sizeof(name)) || listen(fd, backlog) ||
        getsockname(fd, (struct sockaddr *)&name, &length))
        exit(1);
    printf("%d ", ntohs(name.sin_port));
    watch(fd);
    return fd;
}

static long long now(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void drain(int count)
{
    long long used = now(CLOCK_PROCESS_CPUTIME_ID), start = now(CLOCK_MONOTONIC);
    int *taken = calloc(count, sizeof(*taken)), done = 0, from_here = first;

    while (done < count) {
        int connection = taken_from(from_here);
        if (connection >= 0)
            taken[done++] = connection;
        else if (++from_here > last)
            from_here = first;
    }
    printf("%lld %lld\n", now(CLOCK_PROCESS_CPUTIME_ID) - used, now(CLOCK_MONOTONIC) - start);
    fflush(stdout);
    while (done > 0)
        watch(taken[--done]);
    free(taken);
}

static void obey(void)
{
    char line[64];
    int number;

    if (fgets(line, sizeof(line), stdin) == NULL)
        exit(0);
    number = atoi(strchr(line, ' '));
    puts("now");
    fflush(stdout);
    if (line[0] == 's')
        usleep(number * 1000);
    else if (fgets(line, sizeof(line), stdin))
        drain(number);
}

int main(int count, char **arguments)
{
    struct epoll_event events[64];
    char data[1 << 16];
    int n;

    if (count != 3)
        return 2;
    set = epoll_create1(0);
    first = last = listener(atoi(arguments[2]));
    for (n = 1; n < atoi(arguments[1]); n++)
        last = listener(atoi(arguments[2]));
    puts("");
    fflush(stdout);
    watch(0);
    for (;;) {
        int found = epoll_wait(set, events, 64, -1);
        for (n = 0; n < found; n++) {
            int fd = events[n].data.fd;
            if (fd == 0) {
                obey();
            } else if (fd >= first && fd <= last) {
                for (int taken = 0; taken < 64; taken++) {
                    int connection = taken_from(fd);
                    if (connection < 0)
                        break;
                    watch(connection);
                }
            } else {
                ssize_t got = read(fd, data, sizeof(data));
                if (got > 0)
                    got = write(fd, data, got);
                close(fd);
            }
        }
    }
}
