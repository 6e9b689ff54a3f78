/* What engines/admission.h promises, in C, with each engine that works here: the limit of open connections, pauses,
 * overload, shedding, and what a fork leaves. Prints "ok" and the names of the engines, or the line that was not as it
 * should be. Built and run by test_platform.py. */
#if __has_include("platform/engines/admission.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#include "platform/engines/admission.h"

#include <stdio.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: %s (%d)\n", __FILE__, __LINE__, name, #condition, net_last_error()); \
            exit(1); \
        } \
    } while (0)

enum { MANY = 64, SOON = 5000, BRIEF = 30, STALE = 99, ROUNDS = 400 };

static const char *name; /* of the engine whose turn it is */
static unsigned generation; /* how often this process "was forked" */
static unsigned forks_now(void) { return generation; }

/* ------------------------------------------------------------------ connections */

static net_socket_t a_listener(int listens)
{
    net_socket_t s;
    net_address_t at;
    memset(&at, 0, sizeof at);
    at.in.sin_family = AF_INET;
    at.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(net_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, &s) == 0);
    CHECK(bind(s, &at.any, sizeof at.in) == 0 && (!listens || listen(s, net_backlog(1024)) == 0));
    CHECK(net_blocking(s, 0) == 0);
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

static void close_all(int count, const net_socket_t *sockets)
{
    while (count-- > 0)
        CHECK(net_close(sockets[count]) == 0);
}

/* ------------------------------------------------------------------ an engine whose take() fails when it is told to */

static const net_engine_calls_t *real;
static int failures; /* so many times from now on; negative: for ever */
static int closes;   /* connections that are closed while it fails */
static net_admission_t *watched;

static int failing_take(net_engine_t *engine, int limit, int nonblocking, net_socket_t *taken, int *from, int *count)
{
    if (failures == 0)
        return real->take(engine, limit, nonblocking, taken, from, count);
    failures--;
    *count = 0;
    engine->culprit = -1;
    if (closes)
        net_admission_count_down(watched, closes);
    closes = 0;
    return NET_ENOMEM;
}

static net_engine_calls_t failing;

/* ------------------------------------------------------------------ what is tested */

static net_admission_t *admission_of(net_socket_t listener, int limit)
{
    net_admission_t *made = net_admission_new(forks_now);
    net_engine_t *engine;
    CHECK(made != NULL);
    made->batch = MANY;
    net_admission_set_limit(made, limit);
    CHECK(net_engine_open(name, &listener, 1, &engine) == 0);
    engine->room = net_admission_room(made);
    CHECK(net_engine_arm(engine, 1) == 0);
    net_admission_lock(made);
    net_admission_use(made, engine);
    net_admission_unlock(made);
    watched = made;
    return made;
}

static void fails_from_now_on(net_admission_t *admission, int times)
{
    real = admission->engine->calls;
    failing = *real;
    failing.take = failing_take;
    admission->engine->calls = &failing;
    failures = times;
}

/* With all its connections, which are not in `taken` any more. */
static void end(net_admission_t *admission, long connections)
{
    net_engine_t *engine;
    net_engine_stop(admission->engine);
    engine = net_admission_finish(admission);
    CHECK(engine != NULL && admission->engine == NULL && net_admission_finish(admission) == NULL);
    net_engine_close(engine);
    net_admission_lock(admission);
    net_admission_drop_reserve(admission);
    net_admission_unlock(admission);
    net_admission_count_down(admission, connections);
    CHECK(admission->open == 0 && admission->references == 1 + connections);
    net_admission_unreference(admission, connections);
    net_admission_unreference(admission, 1);
}

/* What a wait comes to. The kernel of an io_uring ends one with EINTR, too. */
static int waits(net_admission_t *admission, int milliseconds)
{
    int outcome = STALE, error;
    while ((error = net_engine_wait(admission->engine, milliseconds, &outcome)) == NET_EINTR) {
    }
    CHECK(error == 0);
    return outcome;
}

/* Takes until there are so many, or what stands in the way has come up. */
static int take(net_admission_t *admission, int wished, int at_least, net_socket_t *taken, int *obstacle)
{
    int from[MANY], count, total = 0, error;
    double until = net_monotonic() + (double)SOON / 1000;
    do {
        error = net_admission_take(admission, wished - total, 1, taken + total, from, &count, obstacle);
        total += count;
        if (total < at_least && error == NET_EWOULDBLOCK)
            CHECK(waits(admission, BRIEF) != STALE && net_monotonic() < until);
    } while (total < at_least && (error == 0 || error == NET_EWOULDBLOCK));
    return total;
}

static int nothing(net_admission_t *admission, int *obstacle)
{
    net_socket_t taken[MANY];
    int from[MANY], count = STALE, error = net_admission_take(admission, MANY, 1, taken, from, &count, obstacle);
    CHECK(count == 0);
    return error;
}

static void a_limit_is_kept(void)
{
    net_socket_t listener = a_listener(1), clients[40], taken[MANY];
    net_admission_t *admission = admission_of(listener, 32), totals;
    int obstacle;
    CHECK(admission->low == 28);
    connect_to(listener, 40, clients);
    CHECK(take(admission, MANY, 32, taken, &obstacle) == 32 && admission->reasons == NET_FULL && admission->open == 32);
    CHECK(nothing(admission, &obstacle) == NET_EWOULDBLOCK && obstacle == NET_NO_OBSTACLE);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT); /* the others stay in the queue */
    net_admission_count_down(admission, 3);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT && admission->reasons == NET_FULL); /* not for each one */
    net_admission_count_down(admission, 1);
    CHECK(waits(admission, SOON) == NET_WOKEN);
    CHECK(net_admission_refresh(admission) == 0 && admission->reasons == 0);
    CHECK(take(admission, MANY, 4, taken + 32, &obstacle) == 4 && admission->reasons == NET_FULL);
    net_admission_totals(admission, &totals);
    CHECK(totals.accepted == 36 && totals.open == 32 && totals.high_water == 32 && totals.pauses == 2);
    CHECK(totals.paused > 0 && totals.paused < (double)SOON);
    net_admission_unreference(admission, 4);
    end(admission, 32);
    close_all(36, taken);
    close_all(40, clients);
    net_close(listener);
}

/* One connection at a time is a limit too; those that are closed while it is set are not overlooked. */
static void a_limit_of_one(void)
{
    net_socket_t listener = a_listener(1), clients[2], taken[2];
    net_admission_t *admission = admission_of(listener, 1);
    int obstacle;
    CHECK(admission->low == 0);
    connect_to(listener, 2, clients);
    CHECK(take(admission, MANY, 1, taken, &obstacle) == 1);
    net_admission_count_down(admission, 1);
    net_admission_unreference(admission, 1);
    CHECK(take(admission, MANY, 1, taken + 1, &obstacle) == 1);
    /* It was closed between the look at the count and the pause: nobody else would wake whoever waits for room. */
    net_admission_count_down(admission, 1);
    CHECK(net_admission_refresh(admission) == 0 && admission->reasons == 0);
    net_admission_lock(admission);
    net_engine_calm(admission->engine);
    net_admission_fill_up(admission);
    net_admission_unlock(admission);
    CHECK(waits(admission, SOON) == NET_WOKEN);
    net_admission_unreference(admission, 1);
    end(admission, 0);
    close_all(2, taken);
    close_all(2, clients);
    net_close(listener);
}

/* A timer may be a little early (kqueue): the engine sets it again then. */
static void pause_is_waited_for(net_admission_t *admission)
{
    while (admission->reasons & NET_STARVED) {
        CHECK(waits(admission, SOON) == NET_WOKEN);
        CHECK(net_admission_refresh(admission) == 0);
    }
}

static void overload_is_waited_for(void)
{
    net_socket_t listener = a_listener(1), clients[3], taken[3];
    net_admission_t *admission = admission_of(listener, 0), totals;
    int obstacle, expected = NET_FIRST_PAUSE;
    connect_to(listener, 3, clients);
    CHECK(take(admission, 1, 1, taken, &obstacle) == 1);
    fails_from_now_on(admission, -1);
    for (int n = 0; n < 10; n++) {
        CHECK(nothing(admission, &obstacle) == NET_ENOMEM && obstacle == NET_OVERLOAD);
        CHECK(admission->reasons == NET_STARVED && admission->starved && admission->delay == expected);
        CHECK(nothing(admission, &obstacle) == NET_EWOULDBLOCK); /* and the system is not asked */
        if (expected <= 20) {
            pause_is_waited_for(admission);
            CHECK(net_monotonic() >= admission->until);
        }
        admission->until = 0; /* as if that time was over */
        expected = 2 * expected < NET_LONGEST_PAUSE ? 2 * expected : NET_LONGEST_PAUSE;
    }
    /* One that is closed ends the pause at once. */
    CHECK(nothing(admission, &obstacle) == NET_ENOMEM);
    net_admission_pause_longer(admission, 1000);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT);
    failures = 0;
    net_admission_count_down(admission, 1);
    net_admission_unreference(admission, 1);
    CHECK(waits(admission, SOON) == NET_WOKEN);
    CHECK(take(admission, 2, 2, taken + 1, &obstacle) == 2 && admission->delay == 0 && admission->reasons == 0);
    net_admission_totals(admission, &totals);
    CHECK(totals.failed_before.error[0] == NET_ENOMEM && totals.failed_before.count[0] == 11 && totals.pauses == 11);
    /* The pause that the user's function asked for. */
    failures = 1;
    CHECK(nothing(admission, &obstacle) == NET_ENOMEM);
    net_admission_pause_longer(admission, 1000);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT && admission->until > net_monotonic() + 900);
    net_admission_pause_longer(admission, 0.0019); /* the timer is not early, or nobody would set it again */
    pause_is_waited_for(admission);
    end(admission, 2);
    close_all(3, taken);
    close_all(3, clients);
    net_close(listener);
}

/* While the attempt failed a connection was closed: nobody woke anybody, for nobody waited yet. */
static void room_that_was_made_meanwhile_is_seen(void)
{
    net_socket_t listener = a_listener(1), clients[2], taken[2];
    net_admission_t *admission = admission_of(listener, 0);
    int obstacle;
    connect_to(listener, 2, clients);
    CHECK(take(admission, 1, 1, taken, &obstacle) == 1);
    admission->delay = NET_LONGEST_PAUSE;
    fails_from_now_on(admission, 1);
    closes = 1;
    CHECK(nothing(admission, &obstacle) == NET_ENOMEM && admission->starved == 0);
    CHECK(waits(admission, 0) == NET_WOKEN);
    net_admission_unreference(admission, 1);
    CHECK(take(admission, 1, 1, taken + 1, &obstacle) == 1);
    end(admission, 1);
    close_all(2, taken);
    close_all(2, clients);
    net_close(listener);
}

/* With the descriptor in reserve, a batch at the most; without one it is a pause. */
static void clients_are_shed(void)
{
    net_socket_t listener = a_listener(1), clients[6], taken[6];
    net_admission_t *admission = admission_of(listener, 0);
    int obstacle, n, outcome;
    char byte;
    size_t done;
    admission->sheds = 1;
    admission->batch = 4;
    connect_to(listener, 6, clients);
    fails_from_now_on(admission, 1);
    CHECK(waits(admission, SOON) == NET_READY);
    CHECK(nothing(admission, &obstacle) == NET_ENOMEM && obstacle == NET_OVERLOAD);
    CHECK(admission->shed >= 1 && admission->shed <= 4 && admission->reasons == 0 && admission->open == 0);
    CHECK(admission->reserve != NET_INVALID);
    for (n = 0; n < (int)admission->shed; n++) {
        int error;
        CHECK(net_wait(clients[n], POLLIN, NULL, SOON, &outcome) == 0 && outcome == NET_READY);
        error = net_recv(clients[n], &byte, 1, 0, &done);
        CHECK((error == 0 && done == 0) || error == NET_ECONNRESET);
    }
    failures = 2; /* the first attempt, and that with the reserve: nothing could be shed */
    CHECK(nothing(admission, &obstacle) == NET_ENOMEM && admission->reasons == NET_STARVED);
    net_admission_shed_now(admission);
    CHECK(admission->reasons == 0 && admission->starved == 0);
    net_admission_lock(admission);
    net_admission_drop_reserve(admission);
    net_admission_unlock(admission);
    CHECK(admission->reserve == NET_INVALID);
    n = 6 - (int)admission->shed;
    admission->until = 0;
    CHECK(take(admission, n, n, taken, &obstacle) == n);
    end(admission, n);
    close_all(n, taken);
    close_all(6, clients);
    net_close(listener);
}

static void the_user_pauses(void)
{
    net_socket_t listener = a_listener(1), clients[2], taken[2];
    net_admission_t *admission = admission_of(listener, 0), totals;
    int obstacle;
    CHECK(net_admission_pause(admission) == 0);
    net_admission_wait_for_turn(admission);
    connect_to(listener, 2, clients);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT);
    CHECK(nothing(admission, &obstacle) == NET_EWOULDBLOCK && admission->reasons == NET_BY_USER);
    CHECK(net_admission_refresh(admission) == 0 && admission->reasons == NET_BY_USER); /* nobody else ends that */
    CHECK(net_admission_resume(admission) == 0 && net_admission_resume(admission) == 0 && admission->reasons == 0);
    CHECK(take(admission, 2, 2, taken, &obstacle) == 2);
    net_admission_totals(admission, &totals);
    CHECK(totals.pauses == 0 && totals.paused <= 0); /* those that were not asked for are counted */
    end(admission, 2);
    close_all(2, taken);
    close_all(2, clients);
    net_close(listener);
}

static void given_away_they_count_until_they_are_released(void)
{
    net_socket_t listener = a_listener(1), clients[2], taken[2];
    net_admission_t *admission = admission_of(listener, 2);
    int obstacle;
    connect_to(listener, 2, clients);
    CHECK(take(admission, 2, 2, taken, &obstacle) == 2 && admission->references == 3);
    net_admission_give(admission);
    CHECK(admission->open == 2 && admission->given == 1 && admission->references == 2 && admission->reasons == NET_FULL);
    CHECK(net_admission_release(admission, 2) < 0 && admission->given == 1 && admission->open == 2);
    CHECK(net_admission_release(admission, 1) == 0 && admission->given == 0 && admission->open == 1);
    CHECK(waits(admission, SOON) == NET_WOKEN);
    CHECK(net_admission_release(admission, 1) < 0);
    end(admission, 1);
    close_all(2, taken);
    close_all(2, clients);
    net_close(listener);
}

/* A listener that cannot accept is left out; with the last one it is over. Either it does not listen, or it was closed
 * behind our back. */
static void a_broken_listener_is_left_out(int was_closed)
{
    net_socket_t listener = a_listener(was_closed);
    net_admission_t *admission = admission_of(listener, 0);
    int obstacle = STALE, error = NET_EWOULDBLOCK;
    double until = net_monotonic() + (double)SOON / 1000;
    if (was_closed) {
        net_admission_lock(admission);
        net_admission_make_reserve(admission); /* before: or it would get the number */
        net_admission_unlock(admission);
        CHECK(net_close(listener) == 0);
    }
    while (error == NET_EWOULDBLOCK && net_monotonic() < until)
        error = nothing(admission, &obstacle);
    CHECK(error != 0 && error != NET_EWOULDBLOCK && obstacle == NET_LISTENER);
    CHECK(admission->engine->left == 0 && admission->ended && admission->engine->stopped);
    CHECK(waits(admission, SOON) == NET_WOKEN && nothing(admission, &obstacle) == NET_EWOULDBLOCK);
    end(admission, 0);
    if (!was_closed)
        net_close(listener);
}

/* The lock may have been a parent's thread's, and the engine is the parent's. */
static void a_fork_begins_again(void)
{
    net_socket_t listener = a_listener(1), clients[3], taken[3];
    net_admission_t *admission = admission_of(listener, 1);
    net_engine_t *parents = admission->engine, *own;
    int obstacle;
    connect_to(listener, 3, clients);
    CHECK(take(admission, 1, 1, taken, &obstacle) == 1 && admission->reasons == NET_FULL);
    net_admission_lock(admission); /* a thread of the parent has it, for ever */
    generation++;
    net_admission_count_down(admission, 1);
    CHECK(waits(admission, BRIEF) == NET_TIMED_OUT); /* the parent is not woken */
    net_admission_unreference(admission, 1);
    admission->full = admission->starved = 1;
    CHECK(net_engine_open(name, &listener, 1, &own) == 0);
    net_admission_lock(admission);
    net_admission_begin_again(admission, own); /* `parents` is gone, as in a child */
    net_admission_unlock(admission);
    (void)parents;
    CHECK(admission->engine == own && admission->forks == 1 && admission->reasons == 0 && admission->shared);
    CHECK(admission->full == 0 && admission->starved == 0);
    CHECK(net_admission_refresh(admission) == 0);
    CHECK(take(admission, 1, 1, taken + 1, &obstacle) == 1);
    end(admission, 1);
    close_all(2, taken);
    close_all(3, clients);
    net_close(listener);
    generation = 0;
}

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
static void join(thread_t thread)
{
    CHECK(WaitForSingleObject(thread, 12 * SOON) == WAIT_OBJECT_0);
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
static void join(thread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }
#endif

static long to_close;

static answer_t THREAD closer(void *with)
{
    long closed = 0;
    while (closed < ROUNDS) {
        if (net_get(&to_close) == closed) {
            net_yield();
            continue;
        }
        net_admission_count_down((net_admission_t *)with, 1);
        net_admission_unreference((net_admission_t *)with, 1);
        closed++;
    }
    return 0;
}

/* Whoever waits for room is woken by the one who makes it, whenever that is. */
static void no_wake_up_is_lost(void)
{
    net_socket_t listener = a_listener(1), client, taken;
    net_admission_t *admission = admission_of(listener, 1);
    int obstacle, from, count, n;
    thread_t thread;
    to_close = 0;
    begin(&thread, closer, admission);
    for (n = 0; n < ROUNDS; n++) {
        connect_to(listener, 1, &client);
        while (net_admission_take(admission, 1, 1, &taken, &from, &count, &obstacle) == NET_EWOULDBLOCK)
            CHECK(waits(admission, SOON) != NET_TIMED_OUT);
        CHECK(count == 1);
        net_close(taken);
        net_close(client);
        net_add(&to_close, 1);
    }
    join(thread);
    CHECK(admission->high_water == 1 && admission->accepted == ROUNDS);
    end(admission, 0);
    net_close(listener);
}

int main(void)
{
    int n, first;
    name = "before";
    CHECK(net_startup(&first) == 0);
    for (n = 0; (name = net_engine_name(n)) != NULL; n++) {
        net_socket_t listener = a_listener(1);
        net_engine_t *engine;
        int error = net_engine_open(name, &listener, 1, &engine);
        net_close(listener);
        if (error) {
            printf("no %s here\n", name);
            continue;
        }
        net_engine_close(engine);
        a_limit_is_kept();
        a_limit_of_one();
        overload_is_waited_for();
        room_that_was_made_meanwhile_is_seen();
        clients_are_shed();
        the_user_pauses();
        given_away_they_count_until_they_are_released();
        a_broken_listener_is_left_out(1);
#ifndef _WIN32 /* where nobody is asked: WSAPoll() says nothing of it, and in Wine a request of AcceptEx() stays in flight */
        a_broken_listener_is_left_out(0);
#endif
        a_fork_begins_again();
        no_wake_up_is_lost();
        printf("%s\n", name);
    }
    net_cleanup();
    puts("ok");
    return 0;
}
#else
int main(void) { return 0; }
#endif
