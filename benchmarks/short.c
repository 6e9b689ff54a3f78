/* A server for short connections with epoll and accept4, as small as it can be: accept, read, write, close. It prints
   its port. On a line from stdin it prints how many nanoseconds of processor time it has used. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(name);
    struct epoll_event event = {.events = EPOLLIN}, events[64];
    int on = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), set = epoll_create1(0);
    char data[1 << 16], line[64];

    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (bind(server, (struct sockaddr *)&name, sizeof(name)) || listen(server, 65535) ||
        getsockname(server, (struct sockaddr *)&name, &length))
        return 1;
    event.data.fd = server;
    epoll_ctl(set, EPOLL_CTL_ADD, server, &event);
    event.data.fd = 0;
    epoll_ctl(set, EPOLL_CTL_ADD, 0, &event);
    printf("%d\n", ntohs(name.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(set, events, 64, -1);
        for (int n = 0; n < count; n++) {
            int fd = events[n].data.fd;
            if (fd == 0) {
                struct timespec used;
                if (read(0, line, sizeof(line)) <= 0)
                    return 0;
                clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
                printf("%lld\n", used.tv_sec * 1000000000LL + used.tv_nsec);
                fflush(stdout);
            } else if (fd == server) {
                for (int taken = 0; taken < 64; taken++) {
                    int connection = accept4(server, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                    if (connection < 0)
                        break;
                    event.data.fd = connection;
                    epoll_ctl(set, EPOLL_CTL_ADD, connection, &event);
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
