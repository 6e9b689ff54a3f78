/* The engines on their own, in C: what engines/engine.h promises, from each engine that works here. Prints "ok" and
 * their names, or the line that was not as it should be. Built and run by test_platform.py. */
#if __has_include("platform/engines/engine.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#include "platform/net.h"

/* An engine that gives its caller's lock up asks for the mode of the listener next: then `meanwhile` is called, once, as
 * another thread might do at that moment. */
static void (*meanwhile)(void);
static long disturbing; /* 1: it is to be called */
static int mode_of(net_socket_t s, int *blocks)
{
    if (net_swap(&disturbing, 0))
        meanwhile();
    return net_mode(s, blocks);
}
#define net_mode(s, blocks) mode_of(s, blocks)
#include "platform/engines/engine.h"

#include <stdio.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: %s (%d)\n", __FILE__, __LINE__, name, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

enum { MANY = 200, SOON = 5000, BRIEF = 30, STALE = 99 };

static double soon(void) { return net_monotonic() + (double)SOON / 1000; }

#ifndef KQUEUE_EARLY /* nanoseconds: how early are timers? See tests/kqueue */
#define KQUEUE_EARLY 0
#endif

static const char *name; /* of the engine whose turn it is */
static int takes_ahead;

/* ------------------------------------------------------------------ threads */

#ifdef _WIN32
typedef HANDLE thread_t;
typedef DWORD answer_t;
#define THREAD WINAPI
static void begin(thread_t *thread, LPTHREAD_START_ROUTINE function, void *with)
{
    *thread = CreateThread(NULL, 0, function, with, 0, NULL);
    CHECK(*thread != NULL);
}
static void end(thread_t thread)
{
    CHECK(WaitForSingleObject(thread, 2 * SOON) == WAIT_OBJECT_0);
    CloseHandle(thread);
}
#else
#include <pthread.h>
typedef pthread_t thread_t;
typedef void *answer_t;
#define THREAD
static void begin(thread_t *thread, void *(*function)(void *), void *with)
{
    CHECK(pthread_create(thread, NULL, function, with) == 0);
}
static void end(thread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }
#endif

/* ------------------------------------------------------------------ connections */

static int port_of(net_socket_t s, int peer)
{
    net_address_t at;
    net_length_t length = sizeof at;
    CHECK((peer ? getpeername : getsockname)(s, &at.any, &length) == 0);
    return ntohs(at.in.sin_port);
}

static net_socket_t listen_somewhere(void)
{
    net_socket_t s;
    net_address_t at;
    memset(&at, 0, sizeof at);
    at.in.sin_family = AF_INET;
    at.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    CHECK(bind(s, &at.any, sizeof at.in) == 0 && listen(s, net_backlog(1024)) == 0);
    return s;
}

static void connect_to(net_socket_t listener, int count, net_socket_t *clients)
{
    net_address_t at;
    net_length_t length = sizeof at;
    int n, error, outcome;
    CHECK(getsockname(listener, &at.any, &length) == 0);
    for (n = 0; n < count; n++) {
        CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &clients[n]) == 0);
        error = net_connect(clients[n], &at.any, length);
        CHECK(error == 0 || error == NET_EINPROGRESS);
        CHECK(net_wait(clients[n], POLLOUT, NULL, SOON, &outcome) == 0 && outcome == NET_READY);
    }
}

static void close_all(int count, net_socket_t *sockets)
{
    while (count-- > 0)
        CHECK(net_close(sockets[count]) == 0);
}

/* What is left in the kernel's queue, by plain accept(). */
static int left_in_queue(net_socket_t listener, int at_least)
{
    net_socket_t taken[MANY];
    int count, found = 0, outcome;
    CHECK(net_blocking(listener, 0) == 0);
    while (net_wait(listener, POLLIN, NULL, found < at_least ? SOON : BRIEF, &outcome) == 0 && outcome == NET_READY &&
           net_accept_many(listener, MANY, taken, &count) == 0) {
        found += count;
        close_all(count, taken);
    }
    return found;
}

/* ------------------------------------------------------------------ engines */

static net_engine_t *opened(const net_socket_t *listeners, int count)
{
    net_engine_t *engine;
    CHECK(net_engine_open(name, listeners, count, &engine) == 0 && engine != NULL);
    CHECK(strcmp(engine->calls->name, name) == 0 && !engine->armed && engine->left == count);
    return engine;
}

static net_engine_t *armed(const net_socket_t *listeners, int count)
{
    net_engine_t *engine = opened(listeners, count);
    CHECK(net_engine_arm(engine, 1) == 0 && engine->armed);
    return engine;
}

static int waits(net_engine_t *engine, int milliseconds)
{
    int outcome = STALE, error;
    do
        error = net_engine_wait(engine, milliseconds, &outcome);
    while (error == NET_EINTR); /* io_uring's own work interrupts too */
    CHECK(error == 0);
    return outcome;
}

static void wake_is_over(net_engine_t *engine)
{
    double until = soon();
    while (waits(engine, 0) == NET_WOKEN && net_monotonic() < until)
        net_engine_calm(engine);
    CHECK(waits(engine, 0) != NET_WOKEN);
}

/* As many as there should be, and no more. */
static void take_all(net_engine_t *engine, int count, int batch, net_socket_t *taken, int *from)
{
    double until = soon();
    int done = 0, got, error;
    while (done < count && net_monotonic() < until) {
        CHECK(waits(engine, SOON) == NET_READY);
        if (batch > count - done)
            batch = count - done;
        error = net_engine_take(engine, batch, 1, taken + done, from + done, &got);
        CHECK(error == (got ? 0 : NET_EWOULDBLOCK));
        done += got;
    }
    CHECK(done == count);
}

static void nothing_to_take(net_engine_t *engine)
{
    net_socket_t taken = NET_INVALID;
    int from = STALE, count = STALE;
    CHECK(net_engine_take(engine, 1, 1, &taken, &from, &count) == NET_EWOULDBLOCK);
    CHECK(count == 0 && !engine->full && engine->culprit == -1);
}

static int readable(net_socket_t handle, int milliseconds)
{
    int outcome;
    CHECK(net_wait(handle, POLLIN, NULL, milliseconds, &outcome) == 0);
    return outcome == NET_READY;
}

static void connections_come_in_their_order(int how_many, int batch)
{
    net_socket_t listener = listen_somewhere(), clients[MANY], taken[MANY];
    net_engine_t *engine = opened(&listener, 1);
    int from[MANY], n, inheritable;
    CHECK(waits(engine, 0) == NET_TIMED_OUT);
    nothing_to_take(engine);
    CHECK(net_engine_arm(engine, 1) == 0);
    CHECK(waits(engine, 1) == NET_TIMED_OUT);
    nothing_to_take(engine);
    connect_to(listener, how_many, clients);
    take_all(engine, how_many, batch, taken, from);
    nothing_to_take(engine);
    CHECK(waits(engine, BRIEF) == NET_TIMED_OUT);
    for (n = 0; n < how_many; n++) {
        char byte = 0;
        size_t size;
        CHECK(from[n] == 0 && port_of(taken[n], 1) == port_of(clients[n], 0));
        CHECK(port_of(taken[n], 0) == port_of(listener, 0));
        CHECK(net_is_inheritable(taken[n], &inheritable) == 0 && !inheritable);
        CHECK(net_recv(taken[n], &byte, 1, NET_DONTWAIT, &size) == NET_EWOULDBLOCK);
        CHECK(net_send(clients[n], "!", 1, 0, &size) == 0 && readable(taken[n], SOON));
        CHECK(net_recv(taken[n], &byte, 1, 0, &size) == 0 && byte == '!');
    }
    close_all(how_many, taken);
    close_all(how_many, clients);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static void a_batch_is_shared_out(void)
{
    enum { SOURCES = 3, EACH = 20 };
    net_socket_t listeners[SOURCES], clients[SOURCES * EACH], taken[SOURCES * EACH];
    net_engine_t *engine;
    int n, count, from[SOURCES * EACH], seen[SOURCES] = {0}, first = STALE, turns = 0;
    for (n = 0; n < SOURCES; n++)
        listeners[n] = listen_somewhere();
    engine = armed(listeners, SOURCES);
    for (n = 0; n < SOURCES; n++)
        connect_to(listeners[n], EACH, clients + n * EACH);
    CHECK(!readable(clients[0], BRIEF)); /* time for those that are on their way */
    for (n = 0; n < 3; n++) {
        CHECK(waits(engine, SOON) == NET_READY);
        CHECK(net_engine_take(engine, 6, 1, taken, from, &count) == 0 && count == 6 && engine->full);
        turns += from[0] != first;
        first = from[0];
        while (count-- > 0) {
            seen[from[count]]++;
            CHECK(net_close(taken[count]) == 0);
        }
    }
    CHECK(seen[1] >= 6 && seen[2] >= 6 && turns > 1);
    net_engine_close(engine);
    close_all(SOURCES * EACH, clients);
    close_all(SOURCES, listeners);
}

static void disarmed_it_leaves_them_in_the_queue(void)
{
    net_socket_t listener = listen_somewhere(), clients[3], taken[3];
    net_engine_t *engine = armed(&listener, 1);
    int from[3], count;
    CHECK(net_engine_arm(engine, 0) == 0 && !engine->armed);
    connect_to(listener, 3, clients);
    CHECK(waits(engine, BRIEF) == NET_TIMED_OUT);
    CHECK(net_engine_take(engine, 1, 1, taken, from, &count) == 0 && count == 1); /* whoever asks gets one */
    CHECK(port_of(taken[0], 1) == port_of(clients[0], 0));
    CHECK(left_in_queue(listener, 2) == 2);
    close_all(1, taken);
    close_all(3, clients);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static net_engine_t *disturbed;
static void armed_anew(void)
{
    net_lock(disturbed->lock);
    CHECK(disturbed->busy && net_engine_arm(disturbed, 0) == 0 && net_engine_arm(disturbed, 1) == 0);
    net_unlock(disturbed->lock);
}
static void stopped(void)
{
    net_lock(disturbed->lock);
    CHECK(disturbed->busy);
    net_engine_stop(disturbed);
    CHECK(net_engine_arm(disturbed, 1) == 0); /* changes nothing */
    net_unlock(disturbed->lock);
}
static void removed(void)
{
    net_lock(disturbed->lock);
    CHECK(disturbed->busy == 1);
    net_engine_remove(disturbed, 0);
    CHECK(net_engine_arm(disturbed, 0) == 0);
    net_unlock(disturbed->lock);
}

/* Those who accept beside him have room for what he cannot bring any more. */
static void held_up(void)
{
    net_lock(disturbed->lock);
    CHECK(disturbed->busy && net_engine_expected(disturbed) == 3);
    net_engine_hold_up(disturbed);
    CHECK(disturbed->held_up && net_engine_expected(disturbed) == 1);
    disturbed->beside = 2;
    CHECK(net_engine_expected(disturbed) == 3);
    disturbed->beside = 0;
    net_unlock(disturbed->lock);
}

/* Whoever is in take() while others disarm and arm the engine comes back at once, though not without the connection that
 * he began with: they may do that all the time. So does he whom the others cannot wait for. When they stop the engine or remove the listener he takes none. */
static void take_is_recalled(void (*how)(void), int expected)
{
    net_socket_t listener = listen_somewhere(), clients[3], taken[3];
    net_lock_t lock;
    int from[3], count, error;
    disturbed = armed(&listener, 1);
    connect_to(listener, 3, clients);
    CHECK(waits(disturbed, SOON) == NET_READY);
    net_lock_init(&lock);
    net_lock(&lock);
    disturbed->lock = &lock;
    meanwhile = how;
    net_swap(&disturbing, 1);
    error = net_engine_take(disturbed, 3, 1, taken, from, &count);
    if (net_swap(&disturbing, 0)) { /* it has kept the lock, for what it asked of the kernel cannot wait */
        CHECK(strcmp(name, "io_uring") == 0);
        expected = 3;
    }
    CHECK(count == expected && error == (expected ? 0 : NET_EWOULDBLOCK));
    CHECK(net_engine_expected(disturbed) == 0 && !disturbed->held_up);
    net_unlock(&lock);
    close_all(count, taken);
    CHECK(left_in_queue(listener, 3 - expected) == 3 - expected);
    close_all(3, clients);
    net_engine_close(disturbed);
    CHECK(net_close(listener) == 0);
}

static void no_more_than_there_is_room_for(void)
{
    net_socket_t listener = listen_somewhere(), clients[5], taken[5];
    net_engine_t *engine = opened(&listener, 1);
    int from[5];
    engine->room = 2;
    CHECK(net_engine_arm(engine, 1) == 0);
    connect_to(listener, 5, clients);
    CHECK(waits(engine, SOON) == NET_READY);
    CHECK(left_in_queue(listener, 3) == (takes_ahead ? 3 : 5));
    if (takes_ahead) {
        take_all(engine, 2, 2, taken, from);
        close_all(2, taken);
        close_all(5, clients);
        connect_to(listener, 5, clients);
        CHECK(waits(engine, BRIEF) == NET_TIMED_OUT); /* they were the last */
        engine->room = 1;
        take_all(engine, 1, 1, taken, from);
        close_all(1, taken);
        CHECK(left_in_queue(listener, 4) == 4);
    }
    close_all(5, clients);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static answer_t THREAD wait_for_waking(void *engine)
{
    CHECK(waits((net_engine_t *)engine, SOON) == NET_WOKEN);
    return 0;
}

static void waking_and_timers(void)
{
    net_socket_t listener = listen_somewhere(), client;
    net_engine_t *engine = armed(&listener, 1);
    thread_t threads[4];
    double began;
    int n, round;
    net_engine_wake(engine);
    net_engine_wake(engine);
    CHECK(waits(engine, SOON) == NET_WOKEN && waits(engine, 0) == NET_WOKEN);
    wake_is_over(engine);
    for (round = 0; round < 5; round++) {
        for (n = 0; n < 4; n++)
            begin(&threads[n], wait_for_waking, engine);
        CHECK(waits(engine, BRIEF) == NET_TIMED_OUT);
        net_engine_wake(engine);
        for (n = 0; n < 4; n++)
            end(threads[n]);
        wake_is_over(engine);
    }
    began = net_monotonic();
    CHECK(net_engine_timer(engine, 5 * BRIEF) == 0);
    CHECK(waits(engine, BRIEF) == NET_TIMED_OUT);
    CHECK(waits(engine, SOON) == NET_WOKEN && net_monotonic() - began > (double)BRIEF * 4 / 1000);
    wake_is_over(engine);
    began = net_monotonic(); /* another wake-up neither brings it on nor puts it off */
    CHECK(net_engine_timer(engine, 5 * BRIEF) == 0);
    net_engine_wake(engine);
    wake_is_over(engine);
    CHECK(waits(engine, BRIEF) == NET_TIMED_OUT);
    CHECK(waits(engine, SOON) == NET_WOKEN && net_monotonic() - began > (double)BRIEF * 4 / 1000);
    wake_is_over(engine);
    for (n = 0; n < 4; n++)
        begin(&threads[n], wait_for_waking, engine);
    CHECK(net_engine_timer(engine, 4 * SOON) == 0 && net_engine_timer(engine, BRIEF) == 0); /* the last one counts */
    for (n = 0; n < 4; n++)
        end(threads[n]);
    CHECK(waits(engine, 0) == NET_WOKEN);
    wake_is_over(engine);
    began = net_monotonic();
    CHECK(net_engine_timer(engine, 2 * BRIEF) == 0);
    for (n = 0; net_monotonic() - began < (double)BRIEF * 2 / 1000; n++) {
        CHECK(n < 100 && waits(engine, SOON) == NET_WOKEN); /* once too often may be, once too seldom not */
        net_engine_calm(engine);
    }
    wake_is_over(engine);
    CHECK(net_engine_timer(engine, BRIEF) == 0 && net_engine_timer(engine, -1) == 0);
    CHECK(waits(engine, 2 * BRIEF) == NET_TIMED_OUT);
    connect_to(listener, 1, &client);
    CHECK(waits(engine, SOON) == NET_READY);
    CHECK(net_close(client) == 0);
    net_engine_stop(engine);
    CHECK(waits(engine, SOON) == NET_WOKEN || !takes_ahead);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static void a_loop_polls(void)
{
    net_socket_t listener = listen_somewhere(), handle, clients[3], taken[3];
    net_engine_t *engine = armed(&listener, 1);
    int from[3], count, round, error = net_engine_fileno(engine, &handle);
    if (error) {
        CHECK(error == NET_ENOTSUP && handle == NET_INVALID);
    } else {
        for (round = 0; round < 3; round++) {
            CHECK(!readable(handle, BRIEF));
            connect_to(listener, 3, clients);
            CHECK(readable(handle, SOON));
            take_all(engine, 2, 1, taken, from);
            CHECK(readable(handle, SOON));
            CHECK(net_engine_arm(engine, 0) == 0);
            CHECK(!readable(handle, BRIEF));
            CHECK(net_engine_timer(engine, BRIEF) == 0);
            CHECK(readable(handle, SOON));
            net_engine_calm(engine);
            CHECK(!readable(handle, BRIEF));
            CHECK(net_engine_arm(engine, 1) == 0);
            CHECK(readable(handle, SOON));
            take_all(engine, 1, 1, taken + 2, from);
            CHECK(!readable(handle, BRIEF));
            net_engine_wake(engine);
            CHECK(readable(handle, SOON));
            net_engine_calm(engine);
            close_all(3, taken);
            close_all(3, clients);
        }
        CHECK(!readable(handle, BRIEF));
        net_engine_stop(engine);
        CHECK(readable(handle, SOON));
        CHECK(net_engine_take(engine, 1, 1, taken, from, &count) == NET_EWOULDBLOCK && count == 0);
        CHECK(readable(handle, SOON));
    }
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

/* What is in the engine's hands is handed out; the rest stays in the queue, for whoever has the listener next. */
static void stop_and_remove_lose_nothing(int by_remove)
{
    enum { CLIENTS = 40 };
    net_socket_t listeners[2], clients[CLIENTS], taken[CLIENTS];
    net_engine_t *engine;
    int from[CLIENTS], got, held = 0, n;
    listeners[0] = listen_somewhere();
    listeners[1] = listen_somewhere();
    engine = armed(listeners, 2);
    connect_to(listeners[1], CLIENTS, clients);
    CHECK(waits(engine, SOON) == NET_READY);
    CHECK(waits(engine, BRIEF) == NET_READY);
    if (by_remove) {
        net_engine_remove(engine, 1);
        net_engine_remove(engine, 1);
        CHECK(engine->left == 1 && engine->listeners[1] == NET_INVALID);
        wake_is_over(engine);
        CHECK(takes_ahead || waits(engine, 0) == NET_TIMED_OUT);
    } else {
        net_engine_stop(engine);
    }
    got = left_in_queue(listeners[1], takes_ahead ? 0 : CLIENTS);
    CHECK(net_close(listeners[1]) == 0);
    for (;;) {
        int count, error = net_engine_take(engine, 7, 1, taken, from, &count);
        if (error) {
            CHECK(error == NET_EWOULDBLOCK && count == 0);
            break;
        }
        for (n = 0; n < count; n++)
            CHECK(from[n] == 1 && port_of(taken[n], 1) == port_of(clients[held + n], 0));
        held += count;
        close_all(count, taken);
    }
    CHECK(got + held == CLIENTS && (held > 0) == takes_ahead);
    close_all(CLIENTS, clients);
    if (by_remove) {
        connect_to(listeners[0], 1, clients);
        wake_is_over(engine);
        take_all(engine, 1, 1, taken, from);
        CHECK(from[0] == 0);
        close_all(1, taken);
        close_all(1, clients);
        net_engine_remove(engine, 0);
        CHECK(engine->left == 0);
    }
    CHECK(waits(engine, SOON) == NET_WOKEN);
    net_engine_close(engine);
    CHECK(net_close(listeners[0]) == 0);
}

/* Connections that the engine holds are closed with it, and the listener is as it was. */
static void close_gives_all_back(void)
{
    net_socket_t listener = listen_somewhere(), clients[3], taken[3];
    net_engine_t *engine, *other;
    int round, from[3], count;
    char byte;
    size_t size;
    for (round = 0; round < 3; round++) {
        engine = armed(&listener, 1);
        other = armed(&listener, 1);
        connect_to(listener, 3, clients);
        CHECK(waits(engine, SOON) == NET_READY || waits(other, SOON) == NET_READY);
        CHECK(waits(engine, BRIEF) == NET_READY || waits(other, BRIEF) == NET_READY);
        net_engine_close(engine);
        net_engine_close(other);
        for (count = 0; count < 3 && takes_ahead; count++)
            CHECK(readable(clients[count], SOON) &&
                  (net_recv(clients[count], &byte, 1, 0, &size) == NET_ECONNRESET || size == 0));
        CHECK(left_in_queue(listener, takes_ahead ? 0 : 3) == (takes_ahead ? 0 : 3));
        close_all(3, clients);
    }
    engine = armed(&listener, 1);
    connect_to(listener, 3, clients);
    take_all(engine, 3, 3, taken, from);
    close_all(3, taken);
    close_all(3, clients);
    net_engine_close(engine);
    connect_to(listener, 3, clients);
    CHECK(left_in_queue(listener, 3) == 3);
    close_all(3, clients);
    CHECK(net_close(listener) == 0);
}

static void those_who_died_waiting_are_passed_over(void)
{
    enum { DEAD = 50 };
    struct linger at_once = {1, 0};
    net_socket_t listener = listen_somewhere(), clients[DEAD], taken[DEAD];
    net_engine_t *engine = armed(&listener, 1);
    double until = soon();
    int n, from[DEAD], count, last = -1, found = 0;
    connect_to(listener, DEAD, clients);
    for (n = 0; n < DEAD; n++)
        CHECK(setsockopt(clients[n], SOL_SOCKET, SO_LINGER, (const char *)&at_once, sizeof at_once) == 0);
    close_all(DEAD, clients);
    connect_to(listener, 1, clients);
    while (!found && net_monotonic() < until) {
        net_address_t peer;
        net_length_t length = sizeof peer;
        CHECK(waits(engine, SOON) == NET_READY);
        (void)net_engine_take(engine, DEAD, 1, taken, from, &count);
        for (n = 0; n < count; n++, length = sizeof peer) {
            last = getpeername(taken[n], &peer.any, &length) == 0 ? ntohs(peer.in.sin_port) : -1;
            found += last == port_of(clients[0], 0);
        }
        close_all(count, taken);
    }
    CHECK(found == 1);
    close_all(1, clients);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

static answer_t THREAD arm(void *engine)
{
    CHECK(net_engine_arm((net_engine_t *)engine, 1) == 0);
    return 0;
}

/* What a thread asked for is not gone with it; neither for wait() nor for a loop. */
static void a_thread_may_end(int polls)
{
    net_socket_t listener = listen_somewhere(), clients[3], taken[3], handle = NET_INVALID;
    net_engine_t *engine = opened(&listener, 1);
    thread_t thread;
    double until = soon();
    int from[3], count, done = 0;
    if (polls && net_engine_fileno(engine, &handle) != 0)
        polls = 0;
    begin(&thread, arm, engine);
    end(thread);
    connect_to(listener, 3, clients);
    if (!polls)
        take_all(engine, 3, 3, taken, from);
    while (polls && done < 3 && net_monotonic() < until) {
        CHECK(readable(handle, SOON));
        net_engine_calm(engine);
        (void)net_engine_take(engine, 3 - done, 1, taken + done, from, &count);
        done += count;
    }
    CHECK(!polls || done == 3);
    close_all(3, taken);
    close_all(3, clients);
    net_engine_close(engine);
    CHECK(net_close(listener) == 0);
}

typedef struct {
    net_engine_t *engine;
    net_lock_t lock;
    long taken, ended;
} work_t;

static answer_t THREAD serve(void *with)
{
    work_t *work = (work_t *)with;
    net_socket_t taken[4];
    int from[4], count;
    while (!net_get(&work->ended)) {
        (void)waits(work->engine, SOON);
        net_lock(&work->lock);
        net_engine_calm(work->engine);
        if (work->engine->busy) /* another one is in accept(), without the lock */
            (void)net_engine_take_beside(work->engine, 4, 1, taken, from, &count);
        else
            (void)net_engine_take(work->engine, 4, 1, taken, from, &count);
        net_unlock(&work->lock);
        net_add(&work->taken, count);
        close_all(count, taken);
    }
    return 0;
}

/* wake() needs no lock, all else has it. */
static answer_t THREAD disturb(void *with)
{
    work_t *work = (work_t *)with;
    int n;
    for (n = 0; n < 300 && !net_get(&work->ended); n++) {
        net_engine_wake(work->engine);
        net_lock(&work->lock);
        CHECK(net_engine_timer(work->engine, 1) == 0);
        net_unlock(&work->lock);
        net_yield();
    }
    return 0;
}

static void many_threads(void)
{
    enum { THREADS = 8 };
    net_socket_t listener = listen_somewhere(), clients[MANY];
    thread_t threads[THREADS + 1];
    work_t work = {0};
    double until;
    int n, round;
    net_lock_init(&work.lock);
    work.engine = armed(&listener, 1);
    work.engine->lock = &work.lock;
    for (n = 0; n < THREADS; n++)
        begin(&threads[n], serve, &work);
    begin(&threads[THREADS], disturb, &work);
    for (round = 1; round <= 5; round++) {
        connect_to(listener, 60, clients);
        for (until = soon(); net_get(&work.taken) < 60 * round && net_monotonic() < until;) {
            net_yield();
            net_lock(&work.lock); /* disturbed all the while */
            CHECK(net_engine_arm(work.engine, 0) == 0);
            CHECK(net_engine_arm(work.engine, 1) == 0);
            net_unlock(&work.lock);
        }
        CHECK(net_get(&work.taken) == 60 * round);
        close_all(60, clients);
    }
    net_lock(&work.lock);
    net_engine_remove(work.engine, 0);
    while (work.engine->inside[0]) { /* nobody comes to it again */
        net_unlock(&work.lock);
        net_pause(1);
        net_lock(&work.lock);
    }
    CHECK(net_close(listener) == 0);
    net_swap(&work.ended, 1);
    net_engine_stop(work.engine);
    net_unlock(&work.lock);
    for (n = 0; n <= THREADS; n++)
        end(threads[n]);
    net_engine_close(work.engine);
}

static answer_t THREAD wake_often(void *with)
{
    work_t *work = (work_t *)with;
    int n;
    for (n = 0; n < 300; n++)
        net_engine_wake(work->engine);
    net_add(&work->ended, 1);
    return 0;
}

/* Neither is a wake() lost for good, nor does one stay that calm() cannot end. */
static void wake_meets_calm(void)
{
    enum { THREADS = 3 };
    net_socket_t listener = listen_somewhere();
    thread_t threads[THREADS];
    work_t work = {0};
    int n, round;
    work.engine = armed(&listener, 1);
    for (round = 0; round < 3; round++) {
        work.ended = 0;
        for (n = 0; n < THREADS; n++)
            begin(&threads[n], wake_often, &work);
        while (net_get(&work.ended) < THREADS)
            net_engine_calm(work.engine);
        for (n = 0; n < THREADS; n++)
            end(threads[n]);
        net_engine_calm(work.engine);
        CHECK(waits(work.engine, BRIEF) == NET_TIMED_OUT);
        net_engine_wake(work.engine);
        CHECK(waits(work.engine, SOON) == NET_WOKEN);
    }
    net_engine_close(work.engine);
    CHECK(net_close(listener) == 0);
}

#ifdef _WIN32
/* A listener that an event loop has tied to its completion port serves us all the same, and the port hears nothing. */
static void with_a_completion_port_of_others(void)
{
    net_socket_t listener = listen_somewhere(), clients[3], taken[3];
    HANDLE port = CreateIoCompletionPort((HANDLE)listener, NULL, 7, 1);
    net_engine_t *engine;
    OVERLAPPED *overlapped;
    ULONG_PTR key;
    DWORD size;
    int from[3];
    CHECK(port != NULL);
    engine = armed(&listener, 1);
    connect_to(listener, 3, clients);
    take_all(engine, 3, 3, taken, from);
    close_all(3, taken);
    close_all(3, clients);
    net_engine_close(engine);
    CHECK(!GetQueuedCompletionStatus(port, &size, &key, &overlapped, BRIEF) && overlapped == NULL);
    CloseHandle(port);
    CHECK(net_close(listener) == 0);
    /* And ours is free for a port afterwards. */
    listener = listen_somewhere();
    net_engine_close(armed(&listener, 1));
    CHECK((port = CreateIoCompletionPort((HANDLE)listener, NULL, 7, 1)) != NULL);
    CloseHandle(port);
    CHECK(net_close(listener) == 0);
}
#endif

int main(int count, char **names)
{
    int n, first;
    CHECK(net_startup(&first) == 0);
    for (n = 0; net_engine_name(n); n++) {
        net_engine_t *engine;
        net_socket_t listener;
        int error;
        name = net_engine_name(n);
        if (count > 1 && strcmp(names[1], name) != 0)
            continue;
        listener = listen_somewhere();
        error = net_engine_open(name, &listener, 1, &engine);
        if (error == 0)
            net_engine_close(engine);
        CHECK(net_close(listener) == 0);
        if (error) {
            fprintf(stderr, "%s: cannot be had here (%d)\n", name, error);
            continue;
        }
        takes_ahead = strcmp(name, "acceptex") == 0;
        connections_come_in_their_order(5, 64);
        connections_come_in_their_order(MANY, 64);
        connections_come_in_their_order(MANY, 3);
        a_batch_is_shared_out();
        disarmed_it_leaves_them_in_the_queue();
        if (!takes_ahead) { /* that one keeps the lock */
            take_is_recalled(armed_anew, 1);
            take_is_recalled(held_up, 1);
            take_is_recalled(stopped, 0);
            take_is_recalled(removed, 0);
        }
        no_more_than_there_is_room_for();
        waking_and_timers();
        if (KQUEUE_EARLY < 1000000) /* else it turns a few times more */
            a_loop_polls();
        stop_and_remove_lose_nothing(0);
        stop_and_remove_lose_nothing(1);
        close_gives_all_back();
        those_who_died_waiting_are_passed_over();
        a_thread_may_end(0);
        a_thread_may_end(1);
        many_threads();
        wake_meets_calm();
#ifdef _WIN32
        with_a_completion_port_of_others();
#endif
        fprintf(stderr, "%s: kept\n", name);
    }
    puts("ok");
    return 0;
}
#endif
