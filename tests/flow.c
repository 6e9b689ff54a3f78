/* The platform room on its own: from a name to an echoed byte, in C, through the functions of platform/net.h; and what
 * those functions leave behind when they fail. Prints "ok", or the line that was not as it should be. Built and run by
 * test_platform.py. */
#if __has_include("platform/net.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#include "platform/net.h"

#include <stdio.h>
#include <stdlib.h>
#ifndef _WIN32
#include <sys/wait.h>
#endif

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error %d)\n", __FILE__, __LINE__, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

enum { STALE = 99, SOON = 5000 };

static void wait_for(net_socket_t s, short events)
{
    int outcome = STALE;
    CHECK(net_wait(s, events, NULL, SOON, &outcome) == 0);
    CHECK(outcome == NET_READY);
}

static int not_inheritable(net_socket_t s)
{
    int on = STALE;
    return net_is_inheritable(s, &on) == 0 && on == 0;
}

/* The address of `node` as getaddrinfo() finds it; the length, or 0 when this machine cannot bind it. */
static net_length_t find(const char *node, int family, net_address_t *address)
{
    struct addrinfo hints, *list = NULL;
    net_socket_t probe;
    net_length_t length;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = family;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_protocol = IPPROTO_TCP;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICHOST | NET_AI_NUMERICSERV;
    CHECK(getaddrinfo(node, "0", &hints, &list) == 0);
    CHECK(list != NULL && list->ai_family == family && list->ai_addrlen <= sizeof *address);
    length = (net_length_t)list->ai_addrlen;
    memcpy(address, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    if (net_socket(family, SOCK_STREAM, IPPROTO_TCP, &probe) != 0)
        return 0;
    if (bind(probe, &address->any, length) != 0)
        length = 0;
    CHECK(net_close(probe) == 0);
    return length;
}

static net_socket_t connect_to(const net_address_t *address, net_length_t length)
{
    net_socket_t s;
    int error;
    CHECK(net_socket(address->any.sa_family, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    error = net_connect(s, &address->any, length);
    CHECK(error == 0 || error == NET_EINPROGRESS);
    wait_for(s, POLLOUT);
    return s;
}

static void waiting_ends(net_socket_t listener)
{
    net_waker_t waker;
    int outcome = STALE;
    CHECK(net_wait(listener, POLLIN, NULL, 1, &outcome) == 0 && outcome == NET_TIMED_OUT);
    CHECK(net_waker_open(&waker) == 0);
    CHECK(net_wait(listener, POLLIN, &waker, 1, &outcome) == 0 && outcome == NET_TIMED_OUT);
    net_waker_pull(&waker);
    CHECK(net_wait(listener, POLLIN, &waker, SOON, &outcome) == 0 && outcome == NET_WOKEN);
    net_waker_pull(&waker); /* it stays pulled, for all who wait */
    CHECK(net_wait(listener, POLLIN, &waker, SOON, &outcome) == 0 && outcome == NET_WOKEN);
    net_waker_close(&waker);
}

static void bytes_travel(net_socket_t from, net_socket_t to)
{
    char first[] = "of ", second[] = "parts", data[16];
    net_buffer_t parts[2];
    size_t done = STALE;
    CHECK(net_blocking(to, 0) == 0);
    CHECK(net_recv(to, data, sizeof data, 0, &done) == NET_EWOULDBLOCK && done == 0);
    CHECK(net_send(from, "whole", 5, 0, &done) == 0 && done == 5);
    wait_for(to, POLLIN);
    CHECK(net_recv(to, data, sizeof data, 0, &done) == 0 && done == 5 && memcmp(data, "whole", 5) == 0);
    net_buffer(&parts[0], first, 3);
    net_buffer(&parts[1], second, 5);
    CHECK(net_sendmsg(from, parts, 2, NULL, 0, 0, &done) == 0 && done == 8);
    wait_for(to, POLLIN);
    CHECK(net_recv(to, data, sizeof data, 0, &done) == 0 && done == 8 && memcmp(data, "of parts", 8) == 0);
}

static void connections_come(net_socket_t listener, const net_address_t *at, net_length_t length)
{
    net_socket_t clients[4], taken[4], copy, none = 1;
    net_address_t peer, name;
    net_length_t peer_length = sizeof peer, name_length = sizeof name;
    int n, count = STALE, got = 0, on = STALE;
    size_t done = STALE;
    char byte;

    CHECK(net_accept(listener, 1, NULL, NULL, &none) == NET_EWOULDBLOCK && none == NET_INVALID);
    CHECK(net_accept_many(listener, 4, taken, &count) == NET_EWOULDBLOCK && count == 0);
    for (n = 0; n < 4; n++)
        clients[n] = connect_to(at, length);
    wait_for(listener, POLLIN);
    CHECK(net_accept(listener, 0, &peer.any, &peer_length, &taken[0]) == 0);
    CHECK(getsockname(clients[0], &name.any, &name_length) == 0);
    CHECK(peer_length == name_length && peer.any.sa_family == name.any.sa_family);
    CHECK(peer.in.sin_port == name.in.sin_port); /* at the same place in IPv6 */
    CHECK(not_inheritable(taken[0]));
    CHECK(net_mode(taken[0], &on) == 0 && on == !NET_WAITS_BY_POLL);

    while (got < 3) { /* two, and the last; or one by one, if they come late */
        int limit = got == 0 ? 2 : 3 - got;
        wait_for(listener, POLLIN);
        CHECK(net_accept_many(listener, limit, taken + 1 + got, &count) == 0);
        CHECK(1 <= count && count <= limit);
        got += count;
    }
    none = 1;
    CHECK(net_accept_many(listener, 1, &none, &count) == NET_EWOULDBLOCK && count == 0 && none == NET_INVALID);
    for (n = 1; n < 4; n++) {
        CHECK(not_inheritable(taken[n]));
        CHECK(net_recv(taken[n], &byte, 1, 0, &done) == NET_EWOULDBLOCK && done == 0);
    }
    bytes_travel(clients[1], taken[1]);
    CHECK(net_duplicate(clients[1], &copy) == 0);
    CHECK(copy != clients[1] && not_inheritable(copy));
    CHECK(net_close(clients[1]) == 0);
    bytes_travel(copy, taken[1]);
    clients[1] = copy;

    CHECK(net_inheritable(copy, 1) == 0 && net_is_inheritable(copy, &on) == 0 && on == 1);
    CHECK(net_inheritable(copy, 0) == 0 && not_inheritable(copy));

    for (n = 0; n < 4; n++)
        CHECK(net_close(clients[n]) == 0);
    wait_for(taken[1], POLLIN);
    done = STALE;
    CHECK(net_recv(taken[1], &byte, 1, 0, &done) == 0 && done == 0); /* the end */
    for (n = 0; n < 4; n++)
        CHECK(net_close(taken[n]) == 0);
}

static void walk(const char *node, int family)
{
    net_address_t address;
    net_length_t length = find(node, family, &address);
    net_socket_t listener, second;
    int found_family = STALE, type = STALE, proto = STALE, value = 0, error;
    long queued = STALE, limit = STALE;
    if (length == 0) {
        printf("no %s here\n", node);
        return;
    }
    CHECK(net_socket(family, SOCK_STREAM, IPPROTO_TCP, &listener) == 0);
    CHECK(not_inheritable(listener));
    CHECK(net_listener_defaults(listener, family) == 0);
    CHECK(bind(listener, &address.any, length) == 0);
    CHECK(listen(listener, net_backlog(-1)) == 0);
    length = sizeof address;
    CHECK(getsockname(listener, &address.any, &length) == 0 && address.in.sin_port != 0);
    CHECK(net_describe(listener, &found_family, &type, &proto) == 0);
    CHECK(found_family == family && type == SOCK_STREAM && proto == IPPROTO_TCP);
    length = sizeof value;
    CHECK(getsockopt(listener, IPPROTO_TCP, TCP_NODELAY, (char *)&value, &length) == 0 && value != 0);
    if (net_queue(listener, &queued, &limit) == 0)
        CHECK(queued == 0 && limit > 0);
    else
        CHECK(queued == -1 && limit == -1);
    CHECK(net_blocking(listener, 0) == 0);

    length = sizeof address;
    CHECK(getsockname(listener, &address.any, &length) == 0);
    CHECK(net_socket(family, SOCK_STREAM, IPPROTO_TCP, &second) == 0);
    CHECK(net_listener_defaults(second, family) == 0);
    CHECK(bind(second, &address.any, length) != 0);
    error = net_last_error();
#ifdef _WIN32
    CHECK(error == WSAEADDRINUSE || error == WSAEACCES); /* which of them is told differently in its documents */
#else
    CHECK(error == EADDRINUSE);
#endif
    CHECK(net_close(second) == 0);

    waiting_ends(listener);
    connections_come(listener, &address, length);
    CHECK(net_close(listener) == 0);
    CHECK(net_close(listener) == NET_EBADF);
}

/* After a failure the results are invalid, 0 or NULL, whatever they were before. */
static void failures_leave_nothing(void)
{
    net_socket_t dead, s = 1;
    net_address_t name;
    net_length_t length = sizeof name;
    int a = STALE, b = STALE, c = STALE;
    long queued = STALE, limit = STALE;
    size_t done = STALE;
    char data[4] = {0};
    net_buffer_t part;

    CHECK(net_socket(12345, SOCK_STREAM, 0, &s) == NET_EAFNOSUPPORT && s == NET_INVALID);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &dead) == 0);
    s = 1;
    CHECK(net_accept(dead, 1, NULL, NULL, &s) != 0 && s == NET_INVALID); /* it does not listen */
    CHECK(net_close(dead) == 0);
    CHECK(net_close(dead) == NET_EBADF);
    CHECK(net_close(NET_INVALID) == NET_EBADF);

    s = 1;
    CHECK(net_accept(dead, 1, &name.any, &length, &s) == NET_EBADF && s == NET_INVALID);
    s = 1;
    CHECK(net_accept_many(dead, 1, &s, &a) == NET_EBADF && a == 0 && s == NET_INVALID);
    s = 1;
    CHECK(net_duplicate(dead, &s) == NET_EBADF && s == NET_INVALID);
    a = STALE;
    CHECK(net_describe(dead, &a, &b, &c) == NET_EBADF && a == 0 && b == 0 && c == 0);
    CHECK(net_recv(dead, data, sizeof data, 0, &done) == NET_EBADF && done == 0);
    done = STALE;
    CHECK(net_send(dead, data, sizeof data, 0, &done) == NET_EBADF && done == 0);
    done = STALE;
    net_buffer(&part, data, sizeof data);
    CHECK(net_sendmsg(dead, &part, 1, NULL, 0, 0, &done) == NET_EBADF && done == 0);
    a = STALE;
    CHECK(net_is_inheritable(dead, &a) != 0 && a == 0);
    CHECK(net_inheritable(dead, 1) != 0);
    CHECK(net_blocking(dead, 1) == NET_EBADF);
    a = STALE;
    CHECK(net_mode(dead, &a) == NET_EBADF && a == 0);
    CHECK(net_queue(dead, &queued, &limit) != 0 && queued == -1 && limit == -1);
    CHECK(net_listener_defaults(dead, AF_INET) == NET_EBADF);
    CHECK(net_scope_name(0x7ffffff0, (char *)&name) != 0);
}

static void numbers_mean_the_same(void)
{
    double now = net_monotonic();
    CHECK(net_backlog(7) == 7);
    CHECK(net_died_waiting(NET_EWOULDBLOCK) == 0 && net_died_waiting(NET_EBADF) == 0 && net_died_waiting(0) == 0);
#ifdef _WIN32
    CHECK(net_died_waiting(WSAECONNRESET) && net_died_waiting(WSAECONNABORTED));
    CHECK(net_backlog(-1) == SOMAXCONN && net_backlog(1000) == -1000 && net_backlog(1 << 30) == -65535);
#else
    CHECK(net_died_waiting(ECONNABORTED) && !net_died_waiting(EMFILE));
    CHECK(net_backlog(-1) < 0 || net_backlog(-1) >= SOMAXCONN);
#endif
    CHECK(*NET_ERROR_TEXT(EAI_NONAME) != 0);
    CHECK(net_monotonic() >= now);
}

#ifndef _WIN32
static void forks_are_counted(void)
{
    unsigned before = net_forks();
    int status = -1;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(net_forks() == before + 1 ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(net_forks() == before);
}

static void what_is_no_socket_is_told(void)
{
    int ends[2], family = STALE, type = STALE, proto = STALE;
    CHECK(pipe(ends) == 0);
    CHECK(net_describe(ends[0], &family, &type, &proto) == ENOTSOCK);
    CHECK(family == 0 && type == 0 && proto == 0);
    close(ends[0]);
    close(ends[1]);
}

static void a_nudge_ends_a_transfer(void)
{
    int ends[2];
    char byte;
    size_t done = STALE;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    net_nudge(ends[0]);
    CHECK(net_recv(ends[0], &byte, 1, 0, &done) == 0 && done == 0);
    CHECK(net_send(ends[0], "x", 1, 0, &done) == EPIPE && done == 0); /* and no SIGPIPE */
    CHECK(net_close(ends[0]) == 0 && net_close(ends[1]) == 0);
}
#endif

int main(void)
{
    int first = STALE, again = STALE;
    CHECK(net_startup(&first) == 0);
    CHECK(net_startup(&again) == 0 && again == 0);
#ifdef _WIN32
    CHECK(first == 1);
#else
    CHECK(first == 0);
    forks_are_counted();
    what_is_no_socket_is_told();
    a_nudge_ends_a_transfer();
#endif
    walk("127.0.0.1", AF_INET);
    walk("::1", AF_INET6);
    failures_leave_nothing();
    numbers_mean_the_same();
    net_cleanup();
    puts("ok");
    return 0;
}
#endif
