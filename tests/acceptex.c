/* The engine "acceptex" beside a Winsock that fails. Prints "ok", or the line that was not as it should be. Built for
 * Windows and run by test_platform.py. With a number it only counts stalls: so many rounds with two listeners, a client
 * each, taken one at a time by somebody who polls. */
#if __has_include("platform/engines/engine.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>

#include <mswsock.h>

static int sockets_left = -1; /* negative: any number */
static int socket_error, update_error, request_error, requests_to_fail;
static int updates;    /* sockets that were given what getpeername() and its like need; Wine does not need it */
static SOCKET updated; /* the listener of the last one */
static LPFN_ACCEPTEX real_accept_ex;
static SOCKET renewed; /* before a request of this listener is made, `meanwhile` is called, once */
static void (*meanwhile)(void);

static SOCKET WSAAPI fake_socket(int family, int type, int proto, LPWSAPROTOCOL_INFOW info, GROUP group, DWORD flags)
{
    if (sockets_left == 0) {
        WSASetLastError(socket_error);
        return INVALID_SOCKET;
    }
    sockets_left -= sockets_left > 0;
    return WSASocketW(family, type, proto, info, group, flags);
}

static int WSAAPI fake_setsockopt(SOCKET s, int level, int option, const char *value, int size)
{
    if (level == SOL_SOCKET && option == SO_UPDATE_ACCEPT_CONTEXT) {
        if (update_error) {
            WSASetLastError(update_error);
            update_error = 0;
            return SOCKET_ERROR;
        }
        if (size == sizeof updated)
            memcpy(&updated, value, sizeof updated);
        updates++;
    }
    return setsockopt(s, level, option, value, size);
}

static BOOL PASCAL fake_accept_ex(SOCKET listener, SOCKET s, PVOID buffer, DWORD data, DWORD local, DWORD remote,
                                  LPDWORD received, LPOVERLAPPED overlapped)
{
    if (requests_to_fail > 0) {
        requests_to_fail--;
        WSASetLastError(request_error);
        return FALSE;
    }
    if (meanwhile && listener == renewed) {
        void (*once)(void) = meanwhile;
        meanwhile = NULL;
        once();
    }
    return real_accept_ex(listener, s, buffer, data, local, remote, received, overlapped);
}

#define WSASocketW fake_socket
#define setsockopt fake_setsockopt
#include "platform/engines/engine.h"

#include <stdio.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s (last error %d)\n", __FILE__, __LINE__, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

enum { FEW = 10, SOON = 5000, CONNECTION_RESET = 0xC000020D, INVALID_PARAMETER = 0xC000000D };

static net_socket_t listener, clients[FEW], taken[FEW];
static net_engine_t *engine;
static net_source_t *source;
static int from[FEW], count;

static void set_up(int on)
{
    net_address_t at;
    memset(&at, 0, sizeof at);
    at.in.sin_family = AF_INET;
    at.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &listener) == 0);
    CHECK(bind(listener, &at.any, sizeof at.in) == 0 && listen(listener, 100) == 0);
    CHECK(net_engine_open("acceptex", &listener, 1, &engine) == 0);
    source = ((net_acceptex_t *)engine)->sources;
    real_accept_ex = source->accept_ex;
    source->accept_ex = fake_accept_ex;
    if (on)
        CHECK(net_engine_arm(engine, 1) == 0);
}

static void close_all(int many, net_socket_t *sockets)
{
    while (many-- > 0)
        CHECK(net_close(sockets[many]) == 0);
}

static void tear_down(void)
{
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static void connect_to(int many)
{
    net_address_t at;
    net_length_t length = sizeof at;
    int n, error, outcome;
    CHECK(getsockname(listener, &at.any, &length) == 0);
    for (n = 0; n < many; n++) {
        CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &clients[n]) == 0);
        error = net_connect(clients[n], &at.any, length);
        CHECK(error == 0 || error == NET_EINPROGRESS);
        CHECK(net_wait(clients[n], POLLOUT, NULL, SOON, &outcome) == 0 && outcome == NET_READY);
    }
}

static int waits(int milliseconds)
{
    int outcome = 99;
    CHECK(net_engine_wait(engine, milliseconds, &outcome) == 0);
    return outcome;
}

static int take(int limit) { return net_engine_take(engine, limit, 1, taken, from, &count); }

static void take_all(int many)
{
    double until = net_monotonic() + SOON / 1000.0;
    int done = 0;
    while (done < many && net_monotonic() < until) {
        CHECK(waits(SOON) == NET_READY);
        CHECK(take(many - done) == (count ? 0 : NET_EWOULDBLOCK));
        close_all(count, taken);
        done += count;
    }
    CHECK(done == many && take(1) == NET_EWOULDBLOCK);
}

/* Until so many requests have their connection. */
static void wait_for(int many)
{
    double until = net_monotonic() + SOON / 1000.0;
    while (!(many <= source->queued && net_acceptex_good(source->line[many - 1])) && net_monotonic() < until)
        (void)waits(1);
    CHECK(many <= source->queued && net_acceptex_good(source->line[many - 1]));
}

static unsigned long long failed(int error)
{
    int n;
    for (n = 0; n < NET_FAILURES; n++)
        if (engine->failures.error[n] == error)
            return engine->failures.count[n];
    return 0;
}

static void without_a_single_socket_it_cannot_be_armed(int error)
{
    set_up(0);
    socket_error = error;
    sockets_left = 0;
    CHECK(net_engine_arm(engine, 1) == error && !engine->armed);
    CHECK(net_engine_arm(engine, 1) == error && !engine->armed);
    sockets_left = -1;
    connect_to(2);
    CHECK(waits(10) == NET_TIMED_OUT);
    CHECK(net_engine_arm(engine, 1) == 0 && engine->armed);
    take_all(2);
    close_all(2, clients);
    tear_down();
}

static void what_is_there_is_handed_out_before_the_error(void)
{
    set_up(0);
    socket_error = WSAENOBUFS;
    connect_to(5);
    sockets_left = 3;
    CHECK(net_engine_arm(engine, 1) == 0 && source->queued == 3);
    wait_for(3);
    CHECK(take(FEW) == 0 && count == 3);
    close_all(count, taken);
    CHECK(waits(SOON) == NET_READY);
    CHECK(take(FEW) == WSAENOBUFS && count == 0 && engine->culprit == -1 && !engine->full);
    CHECK(net_engine_arm(engine, 0) == 0);
    CHECK(waits(10) == NET_TIMED_OUT);
    CHECK(take(1) == 0 && count == 1 && from[0] == 0); /* as if a reserve had been closed */
    close_all(1, taken);
    sockets_left = -1;
    CHECK(net_engine_arm(engine, 1) == 0);
    take_all(1);
    close_all(5, clients);
    tear_down();
}

static void requests_that_fail_at_once(void)
{
    set_up(0);
    request_error = WSAECONNRESET;
    requests_to_fail = 3;
    CHECK(net_engine_arm(engine, 1) == 0 && source->queued == NET_AHEAD);
    CHECK(failed(WSAECONNRESET) == 3 && waits(10) == NET_TIMED_OUT);
    connect_to(2);
    take_all(2);
    CHECK(net_engine_arm(engine, 0) == 0);
    CHECK(waits(10) == NET_TIMED_OUT);
    close_all(2, clients);
    tear_down();

    set_up(0);
    requests_to_fail = 100000; /* not for ever */
    CHECK(net_engine_arm(engine, 1) == 0 && requests_to_fail > 100000 - 2 * NET_AHEAD);
    CHECK(waits(SOON) == NET_READY && take(1) == WSAECONNRESET && engine->culprit == 0);
    request_error = WSAEINVAL;
    CHECK(take(1) == WSAEINVAL && engine->culprit == 0 && count == 0);
    requests_to_fail = 0;
    connect_to(1);
    take_all(1);
    close_all(1, clients);
    tear_down();
}

static void connections_that_died_in_a_request(void)
{
    int n, error = 0;
    set_up(1);
    connect_to(5);
    wait_for(5);
    source->line[1]->overlapped.Internal = (ULONG_PTR)(DWORD)CONNECTION_RESET;
    source->line[2]->overlapped.Internal = (ULONG_PTR)(DWORD)CONNECTION_RESET;
    update_error = WSAENOTCONN; /* the first */
    CHECK(take(FEW) == 0 && count == 2);
    close_all(count, taken);
    CHECK(failed(WSAENOTCONN) == 1);
    for (n = 0; n < NET_FAILURES && engine->failures.error[n]; n++)
        error += (int)engine->failures.count[n];
    CHECK(error == 3 && source->queued == NET_AHEAD);
    close_all(5, clients);

    /* And what is no word of one connection is told. */
    connect_to(1);
    wait_for(1);
    source->line[0]->overlapped.Internal = (ULONG_PTR)(DWORD)INVALID_PARAMETER;
    CHECK(waits(SOON) == NET_READY);
    error = take(1);
    CHECK(error != 0 && error != NET_EWOULDBLOCK && engine->culprit == 0);
    CHECK(take(1) == NET_EWOULDBLOCK && engine->culprit == -1);
    close_all(1, clients);
    tear_down();
}

static void each_connection_is_told_of_its_listener_once(void)
{
    set_up(1);
    connect_to(5);
    wait_for(5);
    updates = 0;
    updated = INVALID_SOCKET;
    CHECK(take(2) == 0 && count == 2 && updates == 2 && updated == listener);
    close_all(count, taken);
    net_engine_remove(engine, 0);
    CHECK(updates == 5 && updated == listener); /* the last opportunity */
    CHECK(net_close(listener) == 0);
    CHECK(take(FEW) == 0 && count == 3 && updates == 5 && from[0] == 0);
    close_all(count, taken);
    CHECK(take(FEW) == NET_EWOULDBLOCK);
    net_engine_close(engine);
    close_all(5, clients);
}

static void a_listener_that_is_closed_behind_its_back(int with_a_copy)
{
    net_socket_t copy = NET_INVALID;
    double began;
    int error;
    set_up(1);
    if (with_a_copy)
        CHECK(net_duplicate(listener, &copy) == 0);
    CHECK(closesocket(listener) == 0);
    if (!with_a_copy) {
        CHECK(waits(SOON) == NET_READY);
        error = take(1);
        CHECK(error == WSAENOTSOCK && engine->culprit == 0);
    }
    began = net_monotonic();
    net_engine_remove(engine, 0);
    CHECK(waits(SOON) == NET_WOKEN && engine->left == 0);
    net_engine_close(engine);
    CHECK(net_monotonic() - began < 3 * NET_CANCELLED_IN / 1000.0);
    if (with_a_copy)
        CHECK(net_close(copy) == 0);
}

static net_socket_t other, client_of_first;

static net_socket_t somewhere(void)
{
    net_address_t at;
    net_socket_t s;
    memset(&at, 0, sizeof at);
    at.in.sin_family = AF_INET;
    at.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    CHECK(bind(s, &at.any, sizeof at.in) == 0 && listen(s, 100) == 0);
    return s;
}

static int connects(net_socket_t to, net_socket_t *client)
{
    net_address_t at;
    net_length_t length = sizeof at;
    int error, outcome;
    CHECK(getsockname(to, &at.any, &length) == 0);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, client) == 0);
    error = net_connect(*client, &at.any, length);
    CHECK(error == 0 || error == NET_EINPROGRESS);
    return net_wait(*client, POLLOUT, NULL, SOON, &outcome) == 0 && outcome == NET_READY;
}

/* The request of the first listener is done, and has set the event, when this returns. */
static void a_client_of_the_first(void)
{
    double until = net_monotonic() + SOON / 1000.0;
    CHECK(connects(listener, &client_of_first));
    while (!net_acceptex_done(source->line[0]) && net_monotonic() < until)
        Sleep(1);
    CHECK(net_acceptex_good(source->line[0]));
}

/* Each request that is made clears the event that all share. One listener's connection must be told though it came just
 * before the request of another one is renewed: to a loop, which polls, and to a thread that waits. */
static void a_connection_that_comes_while_another_listener_is_tended(int polled)
{
    net_socket_t both[2], waker = NET_INVALID, client;
    int outcome, n;
    set_up(0);
    net_engine_close(engine);
    both[0] = listener;
    other = somewhere();
    both[1] = other;
    CHECK(net_engine_open("acceptex", both, 2, &engine) == 0);
    source = ((net_acceptex_t *)engine)->sources;
    for (n = 0; n < 2; n++)
        ((net_acceptex_t *)engine)->sources[n].accept_ex = fake_accept_ex;
    engine->room = 2; /* one request each */
    CHECK(net_engine_arm(engine, 1) == 0);
    if (polled)
        CHECK(net_engine_fileno(engine, &waker) == 0);
    CHECK(connects(other, &client));
    if (polled)
        CHECK(net_wait(waker, POLLIN, NULL, SOON, &outcome) == 0 && outcome == NET_READY);
    else
        CHECK(waits(SOON) == NET_READY);
    engine->room = 2;
    renewed = other;
    meanwhile = a_client_of_the_first;
    CHECK(take(1) == 0 && count == 1 && from[0] == 1 && meanwhile == NULL);
    close_all(1, taken);
    if (polled)
        CHECK(net_wait(waker, POLLIN, NULL, SOON, &outcome) == 0 && outcome == NET_READY);
    else
        CHECK(WaitForSingleObject(((net_acceptex_t *)engine)->ready, 0) == WAIT_OBJECT_0 || waits(SOON) == NET_READY);
    engine->room = 2;
    CHECK(take(1) == 0 && count == 1 && from[0] == 0);
    close_all(1, taken);
    close_all(1, &client);
    close_all(1, &client_of_first);
    tear_down();
    CHECK(net_close(other) == 0);
}

typedef struct {
    net_address_t at;
    int rounds;
    volatile LONG served;
} visitor_t;

/* A client after the other: connects, and waits until the server has closed the connection. */
static DWORD WINAPI visit(LPVOID with)
{
    visitor_t *self = (visitor_t *)with;
    char nothing;
    int round;
    for (round = 0; round < self->rounds; round++) {
        SOCKET s = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
        CHECK(s != INVALID_SOCKET && connect(s, &self->at.any, sizeof self->at.in) == 0);
        (void)recv(s, &nothing, 1, 0);
        closesocket(s);
        InterlockedIncrement(&self->served);
    }
    return 0;
}

/* Two listeners with a request each, and a client of each at any time. A stall: somebody who polls is told of nobody
 * within a second, and there is somebody. */
static int stalls(int rounds)
{
    net_socket_t both[2], waker;
    visitor_t visitors[2];
    HANDLE threads[2];
    net_length_t length;
    int n, outcome, left = 2 * rounds, stalled = 0;
    memset(visitors, 0, sizeof visitors);
    for (n = 0; n < 2; n++) {
        both[n] = somewhere();
        length = sizeof visitors[n].at;
        CHECK(getsockname(both[n], &visitors[n].at.any, &length) == 0);
        visitors[n].rounds = rounds;
    }
    CHECK(net_engine_open("acceptex", both, 2, &engine) == 0);
    engine->room = 2;
    CHECK(net_engine_arm(engine, 1) == 0 && net_engine_fileno(engine, &waker) == 0);
    for (n = 0; n < 2; n++)
        CHECK((threads[n] = CreateThread(NULL, 0, visit, &visitors[n], 0, NULL)) != NULL);
    while (left > 0) {
        CHECK(net_wait(waker, POLLIN, NULL, 1000, &outcome) == 0);
        engine->room = 2;
        (void)take(1);
        stalled += outcome != NET_READY && count;
        left -= count;
        close_all(count, taken);
    }
    CHECK(WaitForMultipleObjects(2, threads, TRUE, SOON) == WAIT_OBJECT_0);
    net_engine_close(engine);
    close_all(2, both);
    return stalled;
}

int main(int argc, char **argv)
{
    int first;
    CHECK(net_startup(&first) == 0);
    if (argc > 1) {
        printf("%d stalls in %s rounds\n", stalls(atoi(argv[1])), argv[1]);
        return 0;
    }
    without_a_single_socket_it_cannot_be_armed(WSAEMFILE);
    without_a_single_socket_it_cannot_be_armed(WSAENOBUFS);
    what_is_there_is_handed_out_before_the_error();
    requests_that_fail_at_once();
    connections_that_died_in_a_request();
    each_connection_is_told_of_its_listener_once();
    a_listener_that_is_closed_behind_its_back(0);
    a_listener_that_is_closed_behind_its_back(1);
    a_connection_that_comes_while_another_listener_is_tended(1);
    a_connection_that_comes_while_another_listener_is_tended(0);
    puts("ok");
    return 0;
}
#else
int main(void) { return 0; }
#endif
#endif
