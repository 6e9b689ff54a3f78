/* The load of accepting.py: accepting_load CONNECTIONS AT_ONCE PORT... Connects, to the ports in turn, writes, reads,
   closes; keeps AT_ONCE going. Prints the nanoseconds that all took. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int ports, port[1024];

static int begin(int set)
{
    static int turn;
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN};
    struct linger hard = {1, 0}; /* a reset: thousands in TIME_WAIT would use up the ports */
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    name.sin_port = htons(port[turn++ % ports]);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    if (fd < 0 || connect(fd, (struct sockaddr *)&name, sizeof(name)) || write(fd, "0123456789abcdef", 16) != 16)
        return -1;
    event.data.fd = fd;
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

int main(int count, char **arguments)
{
    struct epoll_event events[64];
    struct timespec from, until;
    char data[64];
    int set = epoll_create1(0), wanted, at_once, begun = 0, ended = 0;

    if (count < 4 || count > 1000)
        return 2;
    wanted = atoi(arguments[1]);
    at_once = atoi(arguments[2]);
    for (ports = 0; ports < count - 3; ports++)
        port[ports] = atoi(arguments[ports + 3]);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (; begun < at_once && begun < wanted; begun++)
        if (begin(set))
            return perror("begin"), 1;
    while (ended < wanted) {
        int found = epoll_wait(set, events, 64, 20000);
        if (found <= 0)
            return fprintf(stderr, "no answer\n"), 1;
        for (int n = 0; n < found; n++) {
            if (read(events[n].data.fd, data, sizeof(data)) != 16)
                return fprintf(stderr, "not the answer\n"), 1;
            close(events[n].data.fd);
            ended++;
            if (begun < wanted) {
                begun++;
                if (begin(set))
                    return perror("begin"), 1;
            }
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    printf("%lld\n", (until.tv_sec - from.tv_sec) * 1000000000LL + (until.tv_nsec - from.tv_nsec));
    return 0;
}
