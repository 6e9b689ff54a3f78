/* The platform room on its own: from a name to an echoed byte, in C, through the functions of platform/net.h; and what
 * those functions leave behind when they fail. Prints "ok", or the line that was not as it should be. Built and run by
 * test_platform.py. */
#if __has_include("platform/net.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#include "platform/net.h"

#include <stdio.h>
#include <stdlib.h>
#ifndef _WIN32
#include <sys/resource.h>
#include <sys/wait.h>
#endif

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error %d)\n", __FILE__, __LINE__, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

#ifdef LINUX_IN_DISGUISE /* compiled as for another system: what the kernel decides stays Linux's */
enum { BUFFER_FACTOR = 2 };
#else
enum { BUFFER_FACTOR = NET_BUFFER_FACTOR };
#endif
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
    error = net_socket(address->any.sa_family, SOCK_STREAM, address->any.sa_family == AF_UNIX ? 0 : IPPROTO_TCP, &s);
    CHECK(error == 0);
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
    CHECK(net_sendmsg(from, parts, 2, NULL, 0, 0, NULL, 0, &done) == 0 && done == 8);
    wait_for(to, POLLIN);
    CHECK(net_recv(to, data, sizeof data, 0, &done) == 0 && done == 8 && memcmp(data, "of parts", 8) == 0);

    /* The same by the calls that tell of addresses, of which a stream has none, and of ancillary data. */
    net_address_t peer;
    net_length_t length = sizeof peer;
    size_t room = 0;
    int told = STALE;
    CHECK(net_recvfrom(to, data, sizeof data, 0, &peer.any, &length, &done) == NET_EWOULDBLOCK && done == 0);
    CHECK(net_send(from, "whole", 5, 0, &done) == 0 && done == 5);
    wait_for(to, POLLIN);
    length = sizeof peer;
    CHECK(net_recvfrom(to, data, 2, 0, &peer.any, &length, &done) == 0 && done == 2 && length <= (net_length_t)sizeof peer);
    length = sizeof peer;
    net_buffer(&parts[0], data, 2);
    net_buffer(&parts[1], data + 2, 8);
    CHECK(net_recvmsg(to, parts, 2, NULL, &room, 0, &told, &peer.any, &length, &done) == 0 && done == 3);
    CHECK(memcmp(data, "ole", 3) == 0 && room == 0 && told == 0 && length <= (net_length_t)sizeof peer);
    length = sizeof peer;
    CHECK(net_recvmsg(to, parts, 2, NULL, &room, 0, &told, &peer.any, &length, &done) == NET_EWOULDBLOCK && done == 0);
}

static void datagrams_have_addresses(void)
{
    net_socket_t one, other;
    net_address_t here, peer;
    net_length_t length = sizeof here;
    char data[8];
    size_t done = STALE;
    CHECK(net_socket(AF_INET, SOCK_DGRAM, 0, &one) == 0 && net_socket(AF_INET, SOCK_DGRAM, 0, &other) == 0);
    memset(&here, 0, sizeof here);
    here.in.sin_family = AF_INET;
    here.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(one, &here.any, sizeof here.in) == 0 && getsockname(one, &here.any, &length) == 0);
    CHECK(net_sendto(other, "hail", 4, 0, &here.any, length, &done) == 0 && done == 4);
    wait_for(one, POLLIN);
    length = sizeof peer;
    CHECK(net_recvfrom(one, data, sizeof data, 0, &peer.any, &length, &done) == 0 && done == 4);
    CHECK(length == sizeof peer.in && peer.in.sin_family == AF_INET && peer.in.sin_port != 0);
    CHECK(net_close(one) == 0 && net_close(other) == 0);
}

static void limits_are_told(net_socket_t s)
{
#ifdef _WIN32
    DWORD half = 500;
#else
    struct timeval half = {0, 500000};
#endif
    CHECK(net_limit(s, 0) == 0 && net_limit(s, 1) == 0);
    CHECK(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, (const char *)&half, sizeof half) == 0);
    CHECK(net_limit(s, 1) == 0 && net_limit(s, 0) > 0.4 && net_limit(s, 0) < 0.6);
    memset(&half, 0, sizeof half);
    CHECK(setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, (const char *)&half, sizeof half) == 0 && net_limit(s, 0) == 0);
}

/* Where the system tells: one that waits is one that is counted. */
static void the_queue_is_counted(net_socket_t listener, const net_address_t *at, net_length_t length)
{
    net_socket_t client = connect_to(at, length), taken;
    long queued = STALE, limit = STALE;
    wait_for(listener, POLLIN);
    if (net_queue(listener, &queued, &limit) == 0)
        CHECK(queued == 1 && net_promised(listener) == 1);
    else
        CHECK(net_promised(listener) == -1);
    CHECK(net_worth(listener, 1, 0) && !net_worth(listener, 1, 1));
    CHECK(net_worth(listener, -1, 0) && net_worth(listener, -1, 1));
    CHECK(net_accept(listener, 1, NULL, NULL, &taken) == 0);
    if (net_queue(listener, &queued, &limit) == 0)
        CHECK(queued == 0);
    CHECK(net_promised(listener) == -1); /* nothing waits, or so the system says */
    CHECK(net_worth(listener, -1, 0) && !net_worth(listener, -1, 1) && net_worth(listener, -1, 2));
    CHECK(net_close(client) == 0 && net_close(taken) == 0);
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
    limits_are_told(copy);
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
    net_address_t unbound;
    net_length_t unbound_length = sizeof unbound;
    if (length == 0) {
        printf("no %s here\n", node);
        return;
    }
    CHECK(net_socket(family, SOCK_STREAM, IPPROTO_TCP, &listener) == 0);
    CHECK(not_inheritable(listener));
    CHECK(net_listener_defaults(listener, family) == 0);
    memset(&unbound, 0xff, sizeof unbound);
    error = getsockname(listener, &unbound.any, &unbound_length) ? net_last_error() : 0;
    CHECK(net_unbound(error) || (error == 0 && unbound.in.sin_port == 0));
    CHECK(!net_unbound(0) && !net_unbound(NET_EBADF));
    CHECK(bind(listener, &address.any, length) == 0);
    CHECK(net_listening(listener, &value) == 0 && value == 0);
    CHECK(listen(listener, net_backlog(-1)) == 0);
    CHECK(net_listening(listener, &value) == 0 && value != 0);
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
    CHECK(net_drops(listener, &queued) == 0 ? queued == 0 : queued == -1);
    CHECK(net_blocking(listener, 0) == 0);

    length = sizeof address;
    CHECK(getsockname(listener, &address.any, &length) == 0);
    CHECK(net_socket(family, SOCK_STREAM, IPPROTO_TCP, &second) == 0);
    CHECK(net_listener_defaults(second, family) == 0);
    CHECK(bind(second, &address.any, length) != 0);
    error = net_last_error();
    CHECK(net_taken(error));
#ifdef _WIN32
    CHECK(error == WSAEADDRINUSE || error == WSAEACCES); /* which of them is told differently in its documents */
#else
    CHECK(error == EADDRINUSE);
#endif
    CHECK(net_close(second) == 0);

    waiting_ends(listener);
    the_queue_is_counted(listener, &address, length);
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
    size_t room = 0;
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
    CHECK(net_sendmsg(dead, &part, 1, NULL, 0, 0, NULL, 0, &done) == NET_EBADF && done == 0);
    done = STALE;
    length = sizeof name;
    CHECK(net_recvfrom(dead, data, sizeof data, 0, &name.any, &length, &done) == NET_EBADF && done == 0);
    done = STALE;
    CHECK(net_sendto(dead, data, 1, 0, &name.any, sizeof name.in, &done) != 0 && done == 0);
    done = STALE;
    length = sizeof name;
    CHECK(net_recvmsg(dead, &part, 1, NULL, &room, 0, &a, &name.any, &length, &done) == NET_EBADF && done == 0);
    CHECK(net_limit(dead, 1) == 0);
    a = STALE;
    CHECK(net_is_inheritable(dead, &a) != 0 && a == 0);
    CHECK(net_inheritable(dead, 1) != 0);
    CHECK(net_blocking(dead, 1) == NET_EBADF);
    a = STALE;
    CHECK(net_mode(dead, &a) == NET_EBADF && a == 0);
    a = STALE;
    CHECK(net_listening(dead, &a) == NET_EBADF && a == 0);
    CHECK(net_connect(dead, &name.any, sizeof name.in) != 0);
    CHECK(net_wait(NET_INVALID, POLLOUT, NULL, 0, &a) != 0 || a != NET_WOKEN);
    CHECK(net_exclusive(dead, 1) == (NET_EXCLUSIVE_IS_A_CHOICE ? NET_EBADF : 0)); /* nothing to do is done */
    CHECK(net_hold(dead, AF_INET, 1) == (NET_JOINS_LATE ? NET_EBADF : 0));
    CHECK(net_queue(dead, &queued, &limit) != 0 && queued == -1 && limit == -1);
    queued = STALE;
    CHECK(net_drops(dead, &queued) != 0 && queued == -1);
    CHECK(net_listener_defaults(dead, AF_INET) == NET_EBADF);
    CHECK(net_scope_name(0x7ffffff0, (char *)&name) != 0);
}

static net_socket_t bound(net_address_t *address, net_length_t *length, int held, int *error)
{
    net_socket_t s;
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    CHECK(net_listener_defaults(s, AF_INET) == 0);
    if (held)
        CHECK(net_hold(s, AF_INET, 1) == 0);
    *error = bind(s, &address->any, *length) == 0 ? 0 : net_last_error();
    *length = sizeof *address;
    if (*error == 0)
        CHECK(getsockname(s, &address->any, length) == 0);
    else
        *length = sizeof address->in;
    return s;
}

#ifndef LINUX_IN_DISGUISE
/* Bound and held, an address is ours before anybody listens; let go, others may join where the system has it so. */
static void an_address_is_held(void)
{
    net_address_t address;
    net_length_t length = find("127.0.0.1", AF_INET, &address);
    int error = STALE;
    net_socket_t ours = bound(&address, &length, 1, &error), theirs;
    CHECK(error == 0);
    theirs = bound(&address, &length, 0, &error);
    CHECK(error != 0 && net_taken(error));
    CHECK(net_close(theirs) == 0);
    CHECK(net_hold(ours, AF_INET, 0) == 0);
    theirs = bound(&address, &length, 0, &error);
    CHECK(NET_JOINS_LATE ? error == 0 : net_taken(error));
    CHECK(net_close(theirs) == 0);

    /* Nobody listens: a connect is refused, at once or when it is waited for. */
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &theirs) == 0);
    error = net_connect(theirs, &address.any, length);
    CHECK(error != 0);
    if (error == NET_EINPROGRESS) {
        length = sizeof error;
        wait_for(theirs, POLLOUT);
        CHECK(getsockopt(theirs, SOL_SOCKET, SO_ERROR, (char *)&error, &length) == 0 && error != 0);
    }
    CHECK(net_close(theirs) == 0 && net_close(ours) == 0);

    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &ours) == 0);
    CHECK(net_exclusive(ours, 1) == 0);
    CHECK(net_exclusive(ours, 0) == 0);
    CHECK(net_close(ours) == 0);
}

#endif

/* The table tells the truth: what is in it, this system's sockets have, in both families. */
static void options_are_had(int family)
{
    const net_option_t *one, *other;
    net_socket_t s;
    if (net_socket(family, SOCK_STREAM, IPPROTO_TCP, &s) != 0)
        return;
    for (one = net_options; one->name; one++) {
        int level = family == AF_INET6 ? one->level6 : one->level;
        int option = family == AF_INET6 ? one->option6 : one->option;
        char value[64] = {0};
        net_length_t size = sizeof value;
        int number = 0, error = 0;
        for (other = net_options; other != one; other++)
            CHECK(strcmp(one->name, other->name) != 0);
        CHECK(one->inherited == 0 || one->inherited == 1);
        if (getsockopt(s, level, option, value, &size) != 0)
            error = net_last_error();
        if (error) /* told and not fatal: a kernel, or an emulator, may be older than its headers */
            printf("%s cannot be read (%d)\n", one->name, error);
        if (strcmp(one->name, "ttl") == 0 || strcmp(one->name, "rcvbuf") == 0 || strcmp(one->name, "nodelay") == 0) {
            int wished = *one->name == 't' ? 9 : *one->name == 'r' ? 16384 : 1;
            CHECK(error == 0);
            CHECK(setsockopt(s, level, option, (const char *)&wished, sizeof wished) == 0);
            size = sizeof number;
            CHECK(getsockopt(s, level, option, (char *)&number, &size) == 0);
            if (size == 1)
                memcpy(value, &number, 1), number = value[0]; /* Windows reads some switches as one byte */
            CHECK(number == (*one->name == 'r' ? wished * BUFFER_FACTOR : wished));
        }
    }
    CHECK(one - net_options >= 6);
    CHECK(NET_BUFFER_FACTOR >= 1 && NET_FASTOPEN_MOST >= 1);
    CHECK(net_close(s) == 0);
}

static void machines_have_addresses(void)
{
    net_address_t address;
    net_length_t length = STALE;
    unsigned cid = STALE, port = STALE;
    int has = net_vsock_put(&address, 0xfffffffeu, 0x80000001u, &length);
    CHECK(has == (NET_AF_VSOCK != -1));
    if (has) {
        CHECK(0 < length && (size_t)length <= sizeof address && (int)address.any.sa_family == NET_AF_VSOCK);
        CHECK(net_vsock_get(&address.any, &cid, &port) == 1 && cid == 0xfffffffeu && port == 0x80000001u);
    } else {
        CHECK(length == 0);
        memset(&address, 0, sizeof address);
        CHECK(net_vsock_get(&address.any, &cid, &port) == 0 && cid == 0 && port == 0);
    }
    memset(&address, 0, sizeof address);
    address.any.sa_family = AF_INET;
    CHECK(net_vsock_get(&address.any, &cid, &port) == 0);

    CHECK(NET_PATH_AT + NET_PATH_ROOM == sizeof(struct sockaddr_un) && NET_PATH_ROOM > 90);
    CHECK(sizeof address >= sizeof(struct sockaddr_in6) && sizeof address >= sizeof(struct sockaddr_un));
}

static void what_threads_share(void)
{
    net_lock_t lock;
    net_waker_t waker;
    net_pollfd_t polled;
    long number = 5;
    net_lock_init(&lock);
    net_lock(&lock);
    CHECK(net_add(&number, 2) == 7 && net_get(&number) == 7 && net_swap(&number, 9) == 7 && number == 9);
    net_unlock(&lock);
    net_yield();
    net_lock(&lock); /* it was given back */
    net_unlock(&lock);
    net_waker_none(&waker);
    CHECK(net_waker_handle(&waker) == NET_INVALID);
    CHECK(net_waker_open(&waker) == 0 && net_waker_handle(&waker) != NET_INVALID);
    CHECK(!net_waker_calm(&waker));
    net_waker_pull(&waker);
    polled.fd = net_waker_handle(&waker);
    polled.events = POLLIN;
    polled.revents = 0;
    CHECK(net_poll(&polled, 1, SOON) == 1 && polled.revents & POLLIN);
    net_waker_calm(&waker);
    CHECK(net_poll(&polled, 1, 0) == 0);
    net_waker_pull(&waker); /* calm, it can be pulled again */
    net_waker_calm(&waker);
    net_waker_close(&waker);
}

static void numbers_mean_the_same(void)
{
    double now = net_monotonic();
    net_pause(2);
    CHECK(net_monotonic() > now);
    CHECK(net_backlog(7) == 7);
    CHECK(net_has_family(AF_INET) == 0 || net_has_family(AF_INET6) == 0); /* never both away */
    CHECK(!net_overloaded(0) && !net_overloaded(NET_EBADF) && !net_forbidden(NET_EBADF));
    CHECK(!net_has_no_name(0) && !net_has_no_name(NET_EBADF) && !net_has_no_name(NET_ENOMEM));
    CHECK(net_died_waiting(NET_EWOULDBLOCK) == 0 && net_died_waiting(NET_EBADF) == 0 && net_died_waiting(0) == 0);
#ifdef _WIN32
    CHECK(net_overloaded(WSAEMFILE) && net_overloaded(WSAENOBUFS) && !net_forbidden(WSAEACCES));
    CHECK(net_has_no_name(WSAENOTCONN) && net_has_no_name(WSAEINVAL) && !net_has_no_name(WSAENOBUFS));
    CHECK(net_died_waiting(WSAECONNRESET) && net_died_waiting(WSAECONNABORTED));
    CHECK(net_backlog(-1) == SOMAXCONN && net_backlog(1000) == -1000 && net_backlog(1 << 30) == -65535);
#else
    CHECK(net_has_no_name(ENOTCONN) && !net_has_no_name(ENOBUFS));
    CHECK(net_died_waiting(ECONNABORTED) && !net_died_waiting(EMFILE));
    CHECK(net_overloaded(EMFILE) && net_overloaded(ENOMEM) && net_forbidden(EPERM));
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

/* Two handles in one message: what is written here is what another system's recvmsg() reads. */
static void handles_travel(void)
{
    int ends[2], sent[2], got[2];
    union { /* as aligned as a cmsghdr, wherever the stack is */
        struct cmsghdr first;
        char bytes[256];
    } control;
    char text[] = "take", data[8];
    size_t done = STALE, room = net_control_space(sizeof sent);
    net_buffer_t part;
    struct msghdr message;
    struct iovec into = {data, sizeof data};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && pipe(sent) == 0);
    CHECK(CMSG_SPACE(sizeof sent) == room && room <= sizeof control);
    memset(&control, 0, sizeof control);
    net_control_put(&control, SOL_SOCKET, SCM_RIGHTS, sent, sizeof sent);
    CHECK(net_buffer(&part, text, 4) == 1);
    CHECK(net_sendmsg(ends[0], &part, 1, &control, room, 0, NULL, 0, &done) == 0 && done == 4);

    memset(&message, 0, sizeof message);
    memset(&control, 0, sizeof control);
    message.msg_iov = &into;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    CHECK(recvmsg(ends[1], &message, 0) == 4 && memcmp(data, "take", 4) == 0);
    CHECK(control.first.cmsg_level == SOL_SOCKET && control.first.cmsg_type == SCM_RIGHTS);
    CHECK(control.first.cmsg_len == CMSG_LEN(sizeof got));
    memcpy(got, CMSG_DATA(&control.first), sizeof got);
    size_t at = 0, size = STALE;
    int level = STALE, type = STALE;
    const char *content = NULL;
    CHECK(net_control_get(&control, message.msg_controllen, &at, &level, &type, &content, &size) == 1);
    CHECK(level == SOL_SOCKET && type == SCM_RIGHTS && size == sizeof got && memcmp(content, got, size) == 0);
    CHECK(at >= message.msg_controllen);
    CHECK(net_control_get(&control, message.msg_controllen, &at, &level, &type, &content, &size) == 0);
    at = 0; /* cut in the middle of the second number */
    CHECK(net_control_get(&control, CMSG_LEN(sizeof(int) + 1), &at, &level, &type, &content, &size) == 1);
    CHECK(size == sizeof(int) + 1);
    at = 0;
    CHECK(net_control_get(&control, 0, &at, &level, &type, &content, &size) == 0);
    CHECK(write(got[1], "!", 1) == 1 && read(sent[0], data, 1) == 1 && *data == '!');
    net_control_drop(&control, message.msg_controllen); /* both */
    CHECK(net_close(got[0]) == NET_EBADF && net_close(got[1]) == NET_EBADF && net_close(sent[0]) == 0 && net_close(sent[1]) == 0);
    CHECK(net_close(ends[0]) == 0 && net_close(ends[1]) == 0);
}

static void a_path_is_an_address(void)
{
    net_address_t address;
    char folder[] = "/tmp/harken-XXXXXX";
    net_socket_t listener, client, taken;
    int family = STALE, type = STALE, proto = STALE, on = STALE;
    net_length_t length;
    CHECK(mkdtemp(folder) != NULL);
    memset(&address, 0, sizeof address);
    address.un.sun_family = AF_UNIX;
    CHECK(snprintf((char *)&address + NET_PATH_AT, NET_PATH_ROOM, "%s/s", folder) > 0);
    length = sizeof address.un;
    CHECK(net_socket(AF_UNIX, SOCK_STREAM, 0, &listener) == 0);
    CHECK(net_listener_defaults(listener, AF_UNIX) == 0 && net_hold(listener, AF_UNIX, 1) == 0);
    CHECK(bind(listener, &address.any, length) == 0 && listen(listener, net_backlog(3)) == 0);
    CHECK(net_describe(listener, &family, &type, &proto) == 0);
    CHECK(family == AF_UNIX && type == SOCK_STREAM && proto == 0);
    CHECK(net_listening(listener, &on) == 0 && on != 0);
    client = connect_to(&address, length);
    CHECK(net_accept(listener, 1, NULL, NULL, &taken) == 0);
    bytes_travel(client, taken);
    CHECK(net_close(client) == 0 && net_close(taken) == 0 && net_close(listener) == 0);
    CHECK(unlink(address.un.sun_path) == 0 && rmdir(folder) == 0);
}

/* With no handle left every maker fails, and leaves nothing half made; the connection stays in the queue. */
static void no_handle_is_left(void)
{
    net_address_t address;
    net_length_t length = find("127.0.0.1", AF_INET, &address);
    int error = STALE, count = STALE;
    net_socket_t listener = bound(&address, &length, 0, &error), client, s = 1;
    net_waker_t waker;
    struct rlimit before, few;
    CHECK(error == 0 && listen(listener, 1) == 0);
    client = connect_to(&address, length);
    wait_for(listener, POLLIN);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == EMFILE && s == NET_INVALID);
    s = 1;
    CHECK(net_accept(listener, 1, NULL, NULL, &s) == EMFILE && s == NET_INVALID);
    s = 1;
    CHECK(net_accept_many(listener, 1, &s, &count) == EMFILE && count == 0 && s == NET_INVALID);
    s = 1;
    error = net_duplicate(listener, &s); /* Linux finds the smallest number, 0, to be beyond the limit */
    CHECK((error == EMFILE || error == EINVAL) && s == NET_INVALID);
    CHECK(net_waker_open(&waker) == EMFILE && net_waker_handle(&waker) == NET_INVALID);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(net_accept(listener, 1, NULL, NULL, &s) == 0);
    CHECK(net_close(s) == 0 && net_close(client) == 0 && net_close(listener) == 0);
}

static void interfaces_have_names(void)
{
    char name[IF_NAMESIZE] = "stale";
    unsigned index = if_nametoindex("lo");
    if (index != 0)
        CHECK(net_scope_name(index, name) == 0 && strcmp(name, "lo") == 0);
}
#else
static void what_winsock_lacks_is_told(void)
{
    net_socket_t s;
    net_buffer_t part;
    char byte = 'x', control[4];
    size_t done = STALE;
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    CHECK(net_control_space(sizeof control) == sizeof control);
    net_control_put(control, 0, 0, "four", 4);
    CHECK(memcmp(control, "four", 4) == 0 && net_buffer(&part, &byte, 1) == 1);
    CHECK(net_sendmsg(s, &part, 1, control, sizeof control, 0, NULL, 0, &done) == NET_ENOTSUP && done == 0);
    size_t at = 0, size = STALE, room = sizeof control;
    int level = STALE, type = STALE;
    const char *content = control;
    net_address_t peer;
    net_length_t length = sizeof peer;
    CHECK(net_control_get(control, room, &at, &level, &type, &content, &size) == 0 && content == NULL && size == 0);
    net_control_drop(control, room);
    CHECK(net_recvmsg(s, &part, 1, control, &room, 0, &type, &peer.any, &length, &done) == NET_ENOTSUP && done == 0);
    CHECK(net_buffer(&part, &byte, (size_t)INT_MAX + 1) == 0); /* what does not fit is told, not cut in silence */
    net_nudge(s);
    CHECK(net_forks() == 0);
    CHECK(net_close(s) == 0);
}
#endif

int main(void)
{
    int first = STALE, again = STALE;
    CHECK(net_startup(&first) == 0);
    CHECK(net_startup(&again) == 0 && again == 0);
#ifdef _WIN32
    CHECK(first == 1);
    what_winsock_lacks_is_told();
#else
    CHECK(first == 0);
    forks_are_counted();
    what_is_no_socket_is_told();
    a_nudge_ends_a_transfer();
    handles_travel();
    a_path_is_an_address();
    no_handle_is_left();
    interfaces_have_names();
#endif
    machines_have_addresses();
    datagrams_have_addresses();
#ifndef LINUX_IN_DISGUISE
    an_address_is_held();
#endif
    options_are_had(AF_INET);
    options_are_had(AF_INET6);
    walk("127.0.0.1", AF_INET);
    walk("::1", AF_INET6);
    failures_leave_nothing();
    what_threads_share();
    numbers_mean_the_same();
    net_cleanup();
    puts("ok");
    return 0;
}
#endif
