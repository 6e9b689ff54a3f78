"""Step 5 for a server: the accept engine. Connections from many listeners in batches, never more than the server can
hold, also when descriptors run out.

Who owns what. An `Acceptor` borrows its listeners and owns an engine (platform/engines), which does the system calls,
and a gauge, which counts the connections that are open. Every connection holds the gauge, too: it counts down when it
is closed, and wakes the engine when there is room again. A listener that is closed or given away tells the acceptor
before, through a watch_t: the engine forgets the handle before anybody else can have its number.

Locking. `gauge.lock` is over the engine (all of its calls but wait and wake) and the acceptor's state. It is held for a
few system calls that cannot wait, and nobody who has it wants the GIL, so it may be waited for with the GIL. accept(2)
may wait, when somebody who shares the listener has made it block since we looked: the engine gives the lock up for that
(`busy` in engine.h). Then other threads pause, ask and close as ever; a second one that wants to accept waits a moment,
without the GIL, and finds nothing; and a listener that is closed counts the accept(2) among its own calls in flight.

`calls` counts the threads that are in the engine without the lock; the last one to leave a closed acceptor closes the
engine. Without a GIL, `shut`, `calls`, `sockets` and `ready` change in the acceptor's critical section, and a
listener's list of watchers in the listener's; `gauge.lock` may be taken in either, never the other way round.

Forks. The child of a fork must not touch the parent's engine, for an epoll set is shared with it, and the number of a
kqueue is a stranger's: the first use makes a new one. A thread of the parent may have had the lock: the first who wants
it in the child makes it anew.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_SetObject
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_RawCalloc, PyMem_RawFree
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport ceil, isnan

cimport harken._platform as c
from harken._system cimport forks
from harken._platform cimport net_engine_t, net_failures_t, net_get, net_lock_t, net_socket_t, net_swap
from harken._socket cimport Socket, end_socket, part_with_socket, shut_socket, watch_t

from ._loading import load
from ._overload import report
from ._stats import AcceptorStats

cdef enum:
    BATCH = 64  # connections that accept_many() takes at the most, unless told
    STRIDE = 16  # the same for iteration, where the last of a batch waits until those before it were dealt with
    CHUNK = 128  # connections that one trip into C takes at the most
    FIRST_PAUSE = 10  # milliseconds, when descriptors have run out; doubled each time, until
    LONGEST_PAUSE = 1000
    YIELDS = 50  # how often whoever waits for a thread in accept(2) yields, before he
    DOZES = 20  # sleeps for a millisecond, so often

cdef enum:  # why no connections are taken, bits of `reasons`
    BY_USER = 1
    FULL = 2
    STARVED = 4

cdef enum:  # what stood in the way, beside the error number
    NOTHING = 0
    OVERLOAD = 1
    LISTENER = 2

cdef enum:  # policies
    PAUSE = 0
    SHED = 1
    ASK = 2


cdef struct gauge_t:
    # Shared by an acceptor and its connections. The numbers are for net_add() and its like.
    long references
    long open  # connections that are open, or were given away and not released
    long given  # those of `open` that were given away
    long closed  # connections that were closed, ever: has room been made since?
    long full  # 1: whoever brings `open` down to `low` wakes the engine
    long starved  # 1: whoever closes a connection wakes it
    long ended  # no listeners are left
    long low
    long owed  # nodes whose `owed` is more than 0
    unsigned int forks  # names the process whose engine this is
    long locked_in  # names the process that has made `lock`; negative: that is about to
    net_lock_t lock
    net_engine_t *engine  # owned by the acceptor; NULL when closed


cdef struct node_t:
    # One listener, and its word to the acceptor. First is what the listener knows.
    watch_t watch
    PyObject *socket  # borrowed; NULL when it is gone
    PyObject *left  # borrowed: the same, when it is gone, and threads in accept(2) count among its calls; or NULL
    int owed  # how many of them do
    gauge_t *gauge
    int index


cdef void unreference(gauge_t *gauge, long count) noexcept nogil:
    if c.net_add(&gauge.references, -count) == 0:
        PyMem_RawFree(gauge)


cdef void lock(gauge_t *gauge) noexcept nogil:
    cdef long here = <long>forks() + 1, seen
    while net_get(&gauge.locked_in) != here:
        seen = net_swap(&gauge.locked_in, -here)
        if seen == here:  # another thread has just made it, and may have it
            net_swap(&gauge.locked_in, here)
        elif seen == -here:
            c.net_yield()
        else:
            c.net_lock_init(&gauge.lock)
            net_swap(&gauge.locked_in, here)
    c.net_lock(&gauge.lock)


cdef void unlock(gauge_t *gauge) noexcept nogil:
    c.net_unlock(&gauge.lock)


cdef void wake(gauge_t *gauge) noexcept nogil:
    if gauge.forks != forks():
        return  # the parent's; the first use in this process looks by itself
    lock(gauge)
    if gauge.engine != NULL:
        c.net_engine_wake(gauge.engine)
    unlock(gauge)


cdef void count_down(gauge_t *gauge, long count) noexcept nogil:
    """Connections were closed."""
    cdef long left = c.net_add(&gauge.open, -count)
    cdef bint wanted = False
    c.net_add(&gauge.closed, count)
    if c.net_get(&gauge.starved) and c.net_swap(&gauge.starved, 0):
        wanted = True
    if left <= gauge.low and c.net_get(&gauge.full) and c.net_swap(&gauge.full, 0):
        wanted = True
    if wanted:
        wake(gauge)


cdef void gone(watch_t *watch) noexcept:
    """A listener is about to be closed or given away."""
    cdef node_t *node = <node_t *>watch
    cdef gauge_t *gauge = node.gauge
    cdef int tries = 0
    lock(gauge)
    if gauge.forks == forks() and gauge.engine != NULL:
        forget(gauge, node.index)
        while gauge.engine != NULL and gauge.engine.inside[node.index] and tries < YIELDS:
            unlock(gauge)  # whoever accepts from it has done so in a microsecond, as a rule
            c.net_yield()
            tries += 1
            lock(gauge)
        if gauge.engine != NULL and gauge.engine.inside[node.index]:
            node.left = node.socket
            node.owed = gauge.engine.inside[node.index]
            (<Socket>node.left).calls += node.owed  # we are in its critical section
            c.net_add(&gauge.owed, 1)
    node.socket = NULL  # from now on give_back() does not wait for us
    unlock(gauge)


cdef void forget(gauge_t *gauge, int index) noexcept nogil:
    """With the lock: no connections from this listener any more."""
    c.net_engine_remove(gauge.engine, index)
    if gauge.engine.left == 0:
        c.net_swap(&gauge.ended, 1)
        c.net_engine_stop(gauge.engine)


cdef class Accepted(Socket):
    """A `Socket` that an `Acceptor` took, and counts as long as it is open."""

    cdef gauge_t *gauge  # a reference of its own; NULL when it is not counted any more

    cdef int shut(self) noexcept:
        cdef int error = shut_socket(self)
        self.leave_gauge()
        return error

    cdef int end(self) noexcept:
        cdef int error = end_socket(self)
        self.leave_gauge()
        return error

    @cython.critical_section
    cdef void leave_gauge(self) noexcept:
        cdef gauge_t *gauge = self.gauge
        self.gauge = NULL
        if gauge != NULL:
            count_down(gauge, 1)
            unreference(gauge, 1)

    cdef net_socket_t part_with(self, bint nudge) noexcept:
        cdef net_socket_t handle = part_with_socket(self, nudge)
        if not nudge and handle != c.NET_INVALID and self.gauge != NULL:
            # Given away open: it is counted until Acceptor.release().
            c.net_add(&self.gauge.given, 1)
            unreference(self.gauge, 1)
            self.gauge = NULL
        return handle


cdef class Acceptor:
    """Acceptor(listeners, *, batch=None, limit=None, on_overload="pause", engine=None)\n--\n\n\
    Accepts connections from one or more listeners, for a thread or for an event loop.

    ::

        for connection in acceptor:             # a thread: blocks until the acceptor is closed
            pool.submit(serve, connection)

        loop.add_reader(acceptor.fileno(), ...)  # a loop: calls accept_many(), which never blocks

    Any number of threads may use one acceptor, also by iteration; a batch that one thread took is shared by all.

    ``listeners`` is a listening `Socket`, or several, which stay the caller's and are served in turns. One that is
    closed or given away is left out from then on; when the last one is, the acceptor is closed.

    ``batch`` is the greatest number of connections accepted at once (None: 64 by accept_many(), 16 by iteration). A
    small one shares the work more evenly among processes that share the listener. In a forked child, and with an
    adopted listener, sched_yield() follows each full batch, to let the other processes accept.

    ``limit`` is how many connections may be open at once: further clients wait in the system's queue, and are accepted
    when an eighth of the limit is free. A connection that was given away with detach() or to_socket() counts until
    release().

    ``on_overload`` says what to do when the process or the system has no descriptors or no memory left (EMFILE, ENFILE,
    ENOBUFS, ENOMEM; WSAEMFILE, WSAENOBUFS). "pause": clients wait in the queue; accepting is tried again after 10 ms,
    then 20, up to a second, and as soon as one of this acceptor's connections is closed. "shed": clients are accepted
    and closed at once, with a descriptor that is kept for this. Or a function ``(acceptor, error)`` that returns
    "pause" (or None), "shed", or the seconds to pause; if it raises, sys.unraisablehook is called, and the acceptor
    pauses. The logger "harken" gets at most one message a second.

    ``engine`` names the system calls to use: "io_uring" (Linux 6.15: epoll, and one request a batch), "accept4" (Linux:
    epoll and accept4), "kqueue" (macOS and the BSDs: kevent and accept), "acceptex" (Windows: up to 32 requests a
    listener wait in the kernel, and take connections out of the queue before they are asked for, but not beyond
    ``limit``) or "accept" (everywhere: poll and accept). None: the best one that works and is allowed.

    Raises TypeError or ValueError for what is not a listener, does not listen, or is given twice; OSError when the
    engine does not work here.
    """

    cdef gauge_t *gauge  # a reference of its own
    cdef node_t *nodes  # owned: one a listener
    cdef int count  # listeners
    cdef tuple sockets  # the listeners; () when closed
    cdef Accepted model  # what connections are copies of
    cdef list ready  # taken for iteration and not given out, the last first
    cdef object asked  # the user's function
    cdef bytes engine  # the one that was asked for
    cdef const char *name  # the one that it is: NULL before there is any
    cdef readonly int batch
    cdef int stride
    cdef long most  # limit; 0: none
    cdef int policy
    cdef int calls  # threads in the engine without the lock
    cdef int waiters  # those of them that wait
    cdef bint polled  # fileno() was asked for
    cdef bint begun, shut
    cdef bint shared  # other processes accept from a listener, too, as far as we know
    cdef bint frees  # connections inherit from their listeners what stops new ones: see drain()
    cdef bint greedy  # shared, and the last batch was full: others first
    cdef object __weakref__
    # With the lock:
    cdef int reasons
    cdef int delay  # milliseconds of the last pause; 0: none since a success
    cdef double until  # when the pause is over
    cdef double since  # when it was that `reasons` became more than BY_USER
    cdef double paused
    cdef double logged  # when the last line was
    cdef unsigned long long accepted, shedded, pauses
    cdef long high_water
    cdef net_socket_t reserve  # owned: a descriptor for shedding, and for the first import of logging
    cdef net_failures_t failed_before  # by the engine that a fork left behind

    def __cinit__(self):
        self.reserve = c.NET_INVALID
        self.sockets = ()
        self.ready = []
        self.model = Accepted.__new__(Accepted)
        self.shut = True
        self.logged = -1e9
        self.gauge = <gauge_t *>PyMem_RawCalloc(1, sizeof(gauge_t))
        if self.gauge == NULL:
            raise MemoryError()
        self.gauge.references = 1
        self.gauge.forks = forks()

    def __init__(self, listeners, *, batch=None, limit=None, on_overload="pause", engine=None):
        # All that runs code of the caller comes first, and writes nothing. A call of __init__ from within it, or from
        # another thread, may get ahead; then this one is the second.
        cdef int most_at_once = BATCH if batch is None else at_least_one(batch, "batch")
        cdef int stride = STRIDE if batch is None else most_at_once
        cdef int most = 0 if limit is None else at_least_one(limit, "limit")
        cdef int policy = policy_of(on_overload)
        cdef bytes wanted = engine_of(engine)
        cdef tuple sockets = listeners_of(listeners)
        if not self.claim():
            raise RuntimeError("this Acceptor already has its listeners: make another one")
        try:
            self.batch, self.stride, self.most, self.policy = most_at_once, stride, most, policy
            # An eighth of a small limit is nothing: then there must be room for one.
            self.gauge.low = min(self.most - 1, self.most - self.most // 8)
            self.asked = on_overload if policy == ASK else None
            self.engine = wanted
            self.watch_over(sockets)
            self.start()
        except BaseException:
            self.give_back()
            self.begun = False
            raise
        self.shut = False

    @cython.critical_section
    cdef bint claim(self) noexcept:
        if self.begun:
            return False
        self.begun = True
        return True

    cdef int start(self) except -1:
        cdef net_engine_t *made = NULL
        cdef int error
        lock(self.gauge)
        error = self.open(&made)
        if error == 0:
            error = c.net_socket((<Socket>self.sockets[0]).domain, c.SOCK_STREAM, 0, &self.reserve)
        if error == 0:
            made.room = self.room()
            error = c.net_engine_arm(made, True)
        if error == 0:
            self.use(made)
        unlock(self.gauge)
        if error:
            if made != NULL:
                c.net_engine_close(made)
            try:
                c.net_raise(error)
            except OSError as failure:
                if self.engine is not None:
                    failure.add_note(f"the engine {self.engine.decode()!r} is not available here")
                raise
        return 0

    def __del__(self):
        cdef list left = self.ready
        if self.gauge == NULL:
            return  # there was no memory for it
        self.close()
        while left:
            left.pop().close()  # nobody can ask for them any more

    def __dealloc__(self):
        if self.gauge == NULL:
            return  # there was no memory for it
        self.give_back()
        if self.gauge.engine != NULL:
            if self.gauge.forks == forks():
                c.net_engine_close(self.gauge.engine)
            else:
                c.net_engine_abandon(self.gauge.engine)
            self.gauge.engine = NULL
        unreference(self.gauge, 1)

    # ------------------------------------------------------------------ what it is made of

    cdef int watch_over(self, tuple listeners) except -1:
        """Checks all before the first is touched."""
        cdef int n
        cdef set handles = set()
        for n in range(<int>len(listeners)):
            check_listener(<Socket>listeners[n], n, handles)
        self.nodes = <node_t *>PyMem_Calloc(len(listeners), sizeof(node_t))
        if self.nodes == NULL:
            raise MemoryError()
        self.sockets = listeners
        self.count = <int>len(listeners)
        self.shared = forks() != 0
        for n in range(self.count):
            listener = <Socket>listeners[n]
            self.shared |= not listener.listens
            self.nodes[n].watch.gone = gone
            self.nodes[n].gauge = self.gauge
            self.nodes[n].index = n
            with cython.critical_section(listener):
                listener.set_blocks(False)
                if listener.handle == c.NET_INVALID:
                    continue  # closed by another thread, since we looked: left out
                self.nodes[n].watch.next = listener.watchers
                self.nodes[n].socket = <PyObject *>listener
                listener.watchers = &self.nodes[n].watch
        return 0

    cdef void give_back(self) noexcept:
        """Nobody watches the listeners any more, and the reserve is free."""
        cdef watch_t **at
        cdef int n
        cdef PyObject *watched
        cdef Socket listener
        for n in range(self.count):
            lock(self.gauge)
            watched = self.nodes[n].socket
            unlock(self.gauge)
            if watched == NULL:
                continue
            listener = <Socket>watched
            with cython.critical_section(listener):
                at = &listener.watchers
                while at[0] != NULL and at[0] != &self.nodes[n].watch:
                    at = &at[0].next
                if at[0] != NULL:
                    at[0] = at[0].next
                self.nodes[n].socket = NULL
        self.count = 0
        PyMem_Free(self.nodes)
        self.nodes = NULL
        self.drop_reserve()

    cdef void drop_reserve(self) noexcept:
        lock(self.gauge)
        if self.reserve != c.NET_INVALID:
            c.net_close(self.reserve)
            self.reserve = c.NET_INVALID
        unlock(self.gauge)

    # ------------------------------------------------------------------ with the lock

    cdef int open(self, net_engine_t **made) noexcept:
        """The engine, for the listeners that are left. Whoever closes one meanwhile waits for the lock."""
        cdef net_socket_t *handles = <net_socket_t *>PyMem_Calloc(self.count, sizeof(net_socket_t))
        cdef const char *name = NULL
        cdef int n, error = c.NET_ENOMEM
        if self.engine is not None:
            name = PyBytes_AS_STRING(self.engine)
        made[0] = NULL
        if handles != NULL:
            for n in range(self.count):
                handles[n] = c.NET_INVALID
                if self.nodes[n].socket != NULL:
                    handles[n] = (<Socket>self.nodes[n].socket).handle
            error = c.net_engine_open(name, handles, self.count, made)
            PyMem_Free(handles)
        return error

    cdef void use(self, net_engine_t *made) noexcept:
        """It is ours from now on, and gone() tells it."""
        made.lock = &self.gauge.lock
        self.gauge.engine = made
        self.name = made.name
        if made.left == 0:
            c.net_swap(&self.gauge.ended, 1)
            c.net_engine_stop(made)

    cdef void pause_for(self, int reason) noexcept nogil:
        if not self.reasons & (FULL | STARVED):
            self.since = c.net_monotonic()
            self.pauses += 1
        self.reasons |= reason
        c.net_engine_arm(self.gauge.engine, False)

    cdef void over(self, int reason) noexcept nogil:
        """The listeners are armed by settle()."""
        if self.reasons & reason:
            self.reasons &= ~reason
            if not self.reasons & (FULL | STARVED):
                self.paused += c.net_monotonic() - self.since

    cdef int settle(self) noexcept nogil:
        """Ends the pauses that are over."""
        cdef int error
        cdef gauge_t *gauge = self.gauge
        if self.reasons & FULL and c.net_get(&gauge.open) <= gauge.low:
            c.net_swap(&gauge.full, 0)
            self.over(FULL)
        if self.reasons & STARVED and (not c.net_get(&gauge.starved) or c.net_monotonic() >= self.until):
            c.net_swap(&gauge.starved, 0)
            c.net_engine_timer(gauge.engine, -1)
            self.over(STARVED)
        if self.reasons:
            return 0
        gauge.engine.room = self.room()
        error = c.net_engine_arm(gauge.engine, True)
        if error:
            self.starve(c.net_get(&gauge.closed))
        return error

    cdef int room(self) noexcept nogil:
        """For how many connections there is room."""
        return <int>max(0, self.most - c.net_get(&self.gauge.open)) if self.most else c.NET_ROOM_FOR_ALL

    cdef void starve(self, long closed) noexcept nogil:
        """There are no descriptors, or no memory. ``closed``: how many connections were closed before the attempt."""
        cdef gauge_t *gauge = self.gauge
        self.delay = min(2 * self.delay, LONGEST_PAUSE) if self.delay else FIRST_PAUSE
        self.pause_for(STARVED)
        self.until = c.net_monotonic() + self.delay / 1000.0
        c.net_swap(&gauge.starved, 1)
        if c.net_get(&gauge.closed) != closed:
            c.net_swap(&gauge.starved, 0)  # room was made meanwhile
            c.net_engine_wake(gauge.engine)
        else:
            c.net_engine_timer(gauge.engine, self.delay)

    cdef int shed(self) noexcept nogil:
        """Accepts and closes, a batch at the most, with the descriptor in reserve. Tells how many."""
        cdef net_socket_t taken
        cdef int where, count, done = 0, error = 0
        while done < self.batch and error == 0 and self.reserve != c.NET_INVALID and not self.gauge.engine.stopped:
            taken = self.reserve
            self.reserve = c.NET_INVALID  # first, for take() gives the lock up
            c.net_close(taken)
            error = c.net_engine_take(self.gauge.engine, 1, True, &taken, &where, &count)
            if count:
                c.net_close(taken)
                done += 1
            if self.reserve == c.NET_INVALID:
                c.net_socket(c.AF_INET, c.SOCK_STREAM, 0, &self.reserve)
        self.shedded += done
        return done

    cdef int grab(self, int wished, bint nonblocking, net_socket_t *taken, int *where, int *count,
                  int *obstacle) noexcept nogil:
        """One batch. The error is what stood in the way of the first connection."""
        cdef net_engine_t *engine = self.gauge.engine
        cdef gauge_t *gauge = self.gauge
        cdef int error, listening = 0
        cdef long closed
        c.net_engine_calm(engine)
        error = self.settle()
        if error:
            obstacle[0] = OVERLOAD
            return error
        if not engine.stopped:
            if self.reasons:
                return c.NET_EWOULDBLOCK
            wished = min(wished, engine.room - engine.beside)
            if wished < 1:
                if not engine.beside:
                    self.fill_up()
                return c.NET_EWOULDBLOCK
            if self.reserve == c.NET_INVALID:
                c.net_socket(c.AF_INET, c.SOCK_STREAM, 0, &self.reserve)
        closed = c.net_get(&gauge.closed)
        error = c.net_engine_take(engine, wished, nonblocking, taken, where, count)
        self.greedy = self.shared and engine.full
        if count[0]:
            self.delay = 0
            self.counted(count[0])
            if engine.room < 1 and not self.reasons & FULL:
                # An engine that takes ahead has used up the room that there was before it began; meanwhile connections
                # were closed, who saw no limit reached and woke nobody. Whoever looks next tells it of the new room.
                c.net_engine_wake(engine)
            return 0
        if error == c.NET_EWOULDBLOCK or error == c.NET_EINTR:
            return error
        if engine.culprit >= 0 and not (c.net_listening(engine.listeners[engine.culprit], &listening) == 0
                                        and listening):
            forget(gauge, engine.culprit)
            obstacle[0] = LISTENER
            return error
        # No descriptors, no memory; or something unheard-of, from a listener that is well: not again at once.
        obstacle[0] = OVERLOAD
        count_failure(&engine.failures, error, 1)
        if self.policy == SHED and self.shed():
            return error
        self.starve(closed)
        return error

    cdef void fill_up(self) noexcept nogil:
        """So many connections are open as may be."""
        self.pause_for(FULL)
        c.net_swap(&self.gauge.full, 1)
        if c.net_get(&self.gauge.open) <= self.gauge.low:
            c.net_engine_wake(self.gauge.engine)  # they were closed meanwhile, and nobody saw that we wait for it

    cdef int grab_locked(self, int wished, bint nonblocking, net_socket_t *taken, int *where, int *count,
                         int *obstacle) noexcept nogil:
        cdef int error = c.NET_EBADF
        count[0] = 0
        obstacle[0] = NOTHING
        lock(self.gauge)
        if self.turn():
            error = self.grab(wished, nonblocking, taken, where, count, obstacle)
        elif self.gauge.engine != NULL:
            error = self.grab_beside(wished, nonblocking, taken, where, count)
        unlock(self.gauge)
        return error

    cdef int grab_beside(self, int wished, bint nonblocking, net_socket_t *taken, int *where,
                         int *count) noexcept nogil:
        """While another thread is held up, who may still get one connection: of those that come now it is we who are
        told, not he."""
        cdef net_engine_t *engine = self.gauge.engine
        cdef int error
        if self.reasons:
            return c.NET_EWOULDBLOCK
        wished = min(wished, self.room() - c.net_engine_expected(engine))
        if wished < 1:
            return c.NET_EWOULDBLOCK
        engine.beside += wished  # theirs and ours together are never more than there is room for
        error = c.net_engine_take_beside(engine, wished, nonblocking, taken, where, count)
        engine.beside -= wished
        self.counted(count[0])
        return error

    cdef void counted(self, int taken) noexcept nogil:
        cdef long open
        if taken == 0:
            return
        self.accepted += taken
        open = c.net_add(&self.gauge.open, taken)
        c.net_add(&self.gauge.references, taken)
        self.high_water = max(self.high_water, open)
        if self.most and open >= self.most:
            self.fill_up()

    cdef bint turn(self) noexcept nogil:
        """With the lock, which is given up meanwhile: until nobody else accepts. False where that takes long, for that
        one may be held up; and without an engine."""
        cdef int tries = 0
        while self.gauge.engine != NULL and self.gauge.engine.busy:
            if tries == YIELDS + DOZES:
                c.net_engine_hold_up(self.gauge.engine)
            if self.gauge.engine.held_up:
                return False
            unlock(self.gauge)
            if tries < YIELDS:
                c.net_yield()
            else:
                c.net_pause(1)
            tries += 1
            lock(self.gauge)
        return self.gauge.engine != NULL

    # ------------------------------------------------------------------ taking

    def accept_many(self, limit=None):
        """Accepts the connections that wait, at most ``limit`` and at most a batch: a list of non-blocking sockets.
        Never blocks: the list is empty when none waits, while paused, and at the limit of open connections.

        Raises EBADF when the acceptor is closed, or its last listener is; OSError, once, for a listener that can accept
        no more (it is left out from then on).
        """
        cdef int wished = self.batch if limit is None else min(at_least_one(limit, "limit"), self.batch)
        cdef list found
        cdef Socket connection
        if not self.shut:
            self.usable()
        if self.at_hand():
            found = []
            while len(found) < wished and (connection := self.next_ready()) is not None:
                connection.settimeout(0)
                found.append(connection)
            if found:
                return found
        found = self.take(wished, True)
        if found is None:
            c.net_raise(c.NET_EBADF)
        return found

    def __iter__(self):
        return self

    def __next__(self):
        cdef list found
        if not self.shut:
            self.usable()
        while True:
            connection = self.next_ready()
            if connection is not None:
                return connection
            found = self.take(self.stride, False)
            if found is None:
                raise StopIteration
            if found:
                connection = found[0]
                if len(found) > 1:
                    del found[0]
                    found.reverse()
                    self.keep(found)
                self.share_out()
                return connection
            self.look(-1)

    cdef bint at_hand(self) noexcept:
        """Is there something that was taken before, and is not held back by pause()?"""
        return bool(self.ready) and (not self.reasons & BY_USER or self.ended())

    cdef object next_ready(self):
        cdef object connection = self.pop_ready() if self.at_hand() else None
        if connection is not None:
            self.share_out()
        return connection

    @cython.critical_section
    cdef object pop_ready(self):
        return self.ready.pop() if self.ready else None

    @cython.critical_section
    cdef int keep(self, list found) except -1:
        self.ready[:0] = found
        return 0

    @cython.critical_section
    cdef tuple enter_with(self):
        """The listeners, which stay until we leave; None when closed."""
        if self.shut:
            return None
        self.calls += 1
        return self.sockets

    cdef int share_out(self) except -1:
        """What one thread has taken is for all: the next one that sleeps, or a loop that polls, is told of the rest."""
        cdef int error
        if not (self.waiters or self.polled):
            return 0
        if self.at_hand():
            wake(self.gauge)
        elif self.polled:
            error = self.refresh()
            if error:
                self.overloaded(error)
        return 0

    cdef bint ended(self) noexcept:
        return self.shut or c.net_get(&self.gauge.ended)

    cdef list take(self, int wished, bint nonblocking):
        """None when there will be no more."""
        cdef net_socket_t taken[CHUNK]
        cdef int where[CHUNK]
        cdef int part, error, count, obstacle
        cdef list found = []
        cdef tuple sockets
        while True:
            if self.shut:
                return found or None
            self.usable()
            sockets = self.enter_with()
            if sockets is None:
                return found or None
            part = min(wished - <int>len(found), CHUNK)
            with nogil:
                if self.greedy:
                    c.net_yield()
                error = self.grab_locked(part, nonblocking, taken, where, &count, &obstacle)
            self.leave()
            if count:
                self.wrap(sockets, nonblocking, taken, where, count, found)
                if count == part and len(found) < wished:
                    continue
            elif obstacle == OVERLOAD:
                try:
                    self.overloaded(error)
                except BaseException:  # an interrupt: those before it are not lost
                    for connection in found:
                        connection.settimeout(None)
                    self.keep(found[::-1])
                    raise
            elif error == c.NET_EINTR:
                c.PyErr_CheckSignals()
                continue
            elif self.shut:
                return found or None  # closed by another thread between the two looks
            elif error != c.NET_EWOULDBLOCK and not found:
                try:
                    c.net_raise(error)
                except OSError as failure:
                    if obstacle == LISTENER:
                        failure.add_note("one listener can no longer accept: it was closed or shut down elsewhere")
                    raise
            elif not found and self.ended():
                return None
            return found

    cdef int wrap(self, tuple sockets, bint nonblocking, net_socket_t *taken, int *where, int count,
                  list found) except -1:
        """Handles become objects; if there is no memory for one, it and the rest are closed."""
        cdef int n = 0
        cdef Socket listener
        cdef Accepted connection
        cdef object model = self.model
        cdef bint blocks = not nonblocking and not c.NET_WAITS_BY_POLL
        cdef double seconds = 0 if nonblocking else -1
        cdef unsigned int process = forks()
        try:
            while n < count:
                connection = <Accepted>c.object_like(model)
                listener = <Socket>PyTuple_GET_ITEM(sockets, where[n])
                connection.handle = taken[n]
                connection.gauge = self.gauge
                n += 1
                connection.domain, connection.kind, connection.proto = listener.domain, listener.kind, listener.proto
                connection.forks = process
                connection.blocks = blocks
                connection.seconds = seconds
                if listener.at_accept is not None:
                    listener.apply_at_accept(connection)
                if self.frees:
                    c.net_only_near(connection.handle, connection.domain, False)
                found.append(connection)
        except BaseException:
            while n < count:
                c.net_close(taken[n])
                count_down(self.gauge, 1)
                unreference(self.gauge, 1)
                n += 1
            raise
        return 0

    # ------------------------------------------------------------------ overload

    cdef int overloaded(self, int error) except -1:
        """Tells the log, or asks the user's function."""
        cdef double seconds = -1
        cdef bint shed = False
        if self.policy != ASK:
            self.log(error)
            return 0
        try:
            try:
                c.net_raise(error)
            except OSError as failure:
                answer = self.asked(self, failure)
            if isinstance(answer, (int, float)) and not isinstance(answer, bool):
                seconds = answer
                if isnan(seconds) or seconds < 0:
                    raise ValueError(f"on_overload returned {answer!r}, which is not a number of seconds")
            elif answer == "shed":
                shed = True
            elif answer is not None and answer != "pause":
                raise TypeError(f"on_overload returned {answer!r}, which is neither 'pause', 'shed' nor a number")
        except Exception as problem:
            PyErr_SetObject(type(problem), problem)
            c.PyErr_WriteUnraisable(self.asked)
        if (shed or seconds >= 0) and self.enter_with() is not None:
            with nogil:
                lock(self.gauge)
                if self.turn() and self.reasons & STARVED:
                    if shed and self.shed():
                        c.net_swap(&self.gauge.starved, 0)
                        self.settle()
                    elif seconds >= 0 and c.net_get(&self.gauge.starved):
                        seconds = max(0.001, min(seconds, 1e6))
                        self.until = c.net_monotonic() + seconds
                        c.net_engine_timer(self.gauge.engine, <int>ceil(seconds * 1000))
                unlock(self.gauge)
            self.leave()
        return 0

    cdef int log(self, int error) except -1:
        cdef double now = c.net_monotonic()
        with cython.critical_section(self):
            if now - self.logged < 1:
                return 0
            self.logged = now
        self.drop_reserve()  # the first line imports logging, which opens files
        try:
            c.net_raise(error)
        except OSError as failure:
            try:
                report(c.net_get(&self.gauge.open), failure, self.policy == SHED)
            except Exception as problem:
                PyErr_SetObject(type(problem), problem)
                c.PyErr_WriteUnraisable(self)
        return 0

    # ------------------------------------------------------------------ waiting

    def wait(self, timeout=None):
        """Waits until accept_many() would return connections, and returns True; False after ``timeout`` seconds, or
        when the acceptor is closed. None waits for ever."""
        cdef double seconds = -1
        if timeout is not None:
            seconds = timeout
            if isnan(seconds) or seconds < 0:
                raise ValueError(f"timeout must be a number of seconds that is not negative: {timeout!r}")
        if not self.shut:
            self.usable()
        return self.at_hand() or (not self.ended() and self.look(c.net_monotonic() + seconds if seconds >= 0 else -1))

    cdef bint look(self, double deadline) except -1:
        """Like Socket.ready(): it has looked once, however short the time."""
        cdef int error, milliseconds, outcome = c.NET_TIMED_OUT
        cdef double left
        cdef net_engine_t *engine
        cdef bint looked = False
        while True:
            milliseconds = c.NET_WAIT_SLICE
            if deadline >= 0:
                left = max(0.0, ceil((deadline - c.net_monotonic()) * 1000))
                if looked and left == 0:
                    return 0
                looked = True
                if milliseconds < 0 or left < milliseconds:
                    milliseconds = <int>min(left, 1 << 30)
            engine = self.enter()
            if engine == NULL:
                return self.at_hand()
            if self.at_hand():  # after enter(), or another thread would think that nobody has to be woken
                self.leave_waiting()
                return 1
            with nogil:
                error = c.net_engine_wait(engine, milliseconds, &outcome)
            self.leave_waiting()
            if self.at_hand():
                return 1
            if self.ended():
                return 0
            if error and error != c.NET_EINTR:
                return c.net_raise(error)
            if outcome == c.NET_READY:
                return 1
            if outcome == c.NET_WOKEN:
                error = self.refresh()
                if error:
                    self.overloaded(error)
            c.PyErr_CheckSignals()

    @cython.critical_section
    cdef net_engine_t *enter(self) except? NULL:
        if self.gauge.forks != forks():
            self.begin_again()
        if self.shut:
            return NULL
        self.calls += 1
        self.waiters += 1
        return self.gauge.engine

    cdef void leave_waiting(self) noexcept:
        self.leave_for(1)

    cdef void leave(self) noexcept:
        if net_get(&self.gauge.owed):
            self.settle_up()
        self.leave_for(0)

    @cython.critical_section
    cdef void leave_for(self, int waiters) noexcept:
        self.waiters -= waiters
        self.calls -= 1
        if self.shut and self.calls == 0:
            self.finish()

    cdef void settle_up(self) noexcept:
        """After accept(2) on a listener that was closed meanwhile: it waits for that."""
        cdef int n, back
        for n in range(self.count):
            lock(self.gauge)
            back = self.nodes[n].owed
            if back and self.gauge.engine != NULL:
                back -= self.gauge.engine.inside[n]
            self.nodes[n].owed -= back
            if back and self.nodes[n].owed == 0:
                c.net_add(&self.gauge.owed, -1)
            unlock(self.gauge)
            while back > 0:
                (<Socket>self.nodes[n].left).leave(False)
                back -= 1

    cdef int refresh(self) noexcept:
        """After a wake-up: is a pause over?"""
        cdef int error = 0
        with nogil:
            lock(self.gauge)
            if self.gauge.engine != NULL:
                c.net_engine_calm(self.gauge.engine)
                error = self.settle()
            unlock(self.gauge)
        return error

    def fileno(self):
        """A descriptor that a loop can poll for reading: it is ready when accept_many() has something to do. On Linux
        an epoll descriptor, on macOS and the BSDs a kqueue, on Windows a socket for select(); -1 when closed. Raises
        OSError where the engine has none (the engine "accept")."""
        cdef net_socket_t handle
        cdef int error
        if self.shut:
            return -1
        self.usable()
        with cython.critical_section(self):
            if self.gauge.engine == NULL:
                return -1  # closed by another thread, since we looked
            error = c.net_engine_fileno(self.gauge.engine, &handle)
        if error:
            try:
                c.net_raise(error)
            except OSError as failure:
                failure.add_note(f"the engine {self.kind()!r} has no descriptor for a loop: call wait() in a thread")
                raise
        self.polled = True
        self.share_out()
        return handle

    # ------------------------------------------------------------------ from any thread

    def pause(self):
        """Stops accepting until resume(): clients wait in the system's queue. accept_many() returns an empty list, and
        iteration waits, also with what is left of its batch."""
        cdef bint busy = False
        self.usable()
        lock(self.gauge)
        if self.gauge.engine != NULL:
            self.reasons |= BY_USER
            c.net_engine_arm(self.gauge.engine, False)
            busy = self.gauge.engine.busy != 0
        unlock(self.gauge)
        if busy:  # that one comes back first, unless he is held up
            with nogil:
                lock(self.gauge)
                self.turn()
                unlock(self.gauge)
        self.share_out()

    def resume(self):
        """Ends pause(), however often that was called."""
        cdef int error = 0
        self.usable()
        lock(self.gauge)
        if self.gauge.engine != NULL and self.reasons & BY_USER:
            self.reasons &= ~BY_USER
            error = self.settle()
        unlock(self.gauge)
        self.share_out()
        if error:
            self.overloaded(error)

    @cython.critical_section
    def release(self, n=1):
        """Reports that ``n`` connections that were given away with detach() or to_socket() are closed: they no longer
        count."""
        cdef int count = at_least_one(n, "n")
        cdef long left = c.net_add(&self.gauge.given, -count)
        if left < 0:
            c.net_add(&self.gauge.given, count)
            raise ValueError(f"release({n}): only {left + count} connections were given away and not released")
        count_down(self.gauge, count)

    def drain(self, deadline=5.0):
        """Stops without losing a client, and returns a `Drained`. New connections are stopped; those whose handshake
        has begun are waited for, and accepted by whoever iterates or calls accept_many(), as before; when the queue is
        empty, the acceptor and its listeners are closed, which ends iteration; then this waits until the connections
        that the acceptor counts are closed. All of it takes ``deadline`` seconds at the most.

        New connections are stopped by setsockopt(IP_MINTTL, IPV6_MINHOPCOUNT) on Linux, for a unix socket by removing
        its path. Their clients are not refused, but try again after a second. Nobody but this acceptor may accept from
        the listeners meanwhile. Elsewhere, and with `reuse_port`, new ones come until the listeners are closed. Of
        listeners that other processes have, too, this process's copies are closed at once: the queue is the others'.

        It blocks: another thread than those that accept calls it; an event loop has `harken.asyncio.Server.drain`.
        """
        cdef double seconds = deadline
        if isnan(seconds) or seconds < 0:
            raise ValueError(f"deadline must be a number of seconds that is not negative: {deadline!r}")
        self.usable()
        return load("harken._draining").drain(self, seconds)

    def _begin_drain(self):
        """For `drain`: the listeners, and whether others have them too. From now on connections are freed of what they
        inherit from a listener that takes no new ones."""
        cdef tuple sockets = self.enter_with()
        if sockets is None:
            return (), True
        self.frees = True
        self.leave()
        return sockets, bool(self.shared)

    def close(self):
        """Stops accepting and wakes the threads that wait: iteration ends, accept_many() raises EBADF. Connections that
        were already taken out of the system's queue are returned first; those that nobody asks for are closed when the
        acceptor is deleted. The listeners and the connections stay open. A second call does nothing.

        In a forked child it closes only the child's copies: a server that forks for each connection calls it in the
        child, which would otherwise keep the other connections of the batch open."""
        cdef net_socket_t taken[CHUNK]
        cdef int where[CHUNK]
        cdef int count = 0, obstacle
        cdef list left = []
        cdef tuple sockets
        if self.gauge.forks != forks():
            self.leave_to_parent()
        if not self.must_close():
            return
        sockets = self.sockets  # they stay until we leave
        if self.gauge.engine != NULL:
            while True:
                with nogil:
                    self.grab_locked(CHUNK, False, taken, where, &count, &obstacle)
                if count == 0:
                    break
                self.wrap(sockets, False, taken, where, count, left)
            left.reverse()
            self.keep(left)
        self.leave()

    @cython.critical_section
    cdef bint must_close(self) noexcept:
        if self.shut:
            return False
        self.shut = True
        self.calls += 1  # our own
        if self.gauge.forks != forks():
            self.calls, self.waiters = 1, 0
            lock(self.gauge)
            self.abandon()
            self.gauge.engine = NULL
            self.gauge.forks = forks()
            unlock(self.gauge)
            return True
        lock(self.gauge)
        self.reasons |= BY_USER
        c.net_engine_stop(self.gauge.engine)
        unlock(self.gauge)
        return True

    cdef void finish(self) noexcept:
        """The last one out."""
        cdef net_engine_t *engine
        lock(self.gauge)
        engine = self.gauge.engine
        if engine != NULL:
            self.over(FULL | STARVED)
            keep_failures(&self.failed_before, engine)
            self.name = engine.name
        self.gauge.engine = NULL
        unlock(self.gauge)
        if engine != NULL:
            c.net_engine_close(engine)
        self.give_back()
        self.sockets = ()

    @property
    def closed(self):
        """True when it is closed, or its last listener is."""
        return self.ended()

    @property
    def limit(self):
        """How many connections may be open at once, or None."""
        return self.most or None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    # ------------------------------------------------------------------ forks

    cdef int usable(self) except -1:
        if self.shut:
            return c.net_raise(c.NET_EBADF)
        if self.gauge.forks != forks():
            self.begin_again()
        return 0

    @cython.critical_section
    cdef int begin_again(self) except -1:
        """In a child: an engine of its own."""
        cdef net_engine_t *made = NULL
        cdef gauge_t *gauge = self.gauge
        cdef int error = 0
        cdef list left
        if gauge.forks == forks() or self.shut:
            return 0  # another thread was here
        left, self.ready = self.ready, []  # before anybody else takes this acceptor for ours
        lock(gauge)
        error = self.open(&made)
        if error == 0:
            self.abandon()
            self.over(FULL | STARVED)
            gauge.full = gauge.starved = 0
            self.shared = True
            self.calls = self.waiters = 0
            self.use(made)
            gauge.forks = forks()
        unlock(gauge)
        if error:
            self.ready = left
            return c.net_raise(error)
        while left:
            left.pop().close()
        error = self.refresh()
        if error:
            self.overloaded(error)
        return 0

    cdef void abandon(self) noexcept:
        """In a child, with the lock: the parent's engine. Its threads stayed behind, and so did their calls."""
        cdef int n
        keep_failures(&self.failed_before, self.gauge.engine)
        c.net_engine_abandon(self.gauge.engine)
        self.gauge.owed = 0
        for n in range(self.count):
            self.nodes[n].owed = 0

    cdef int leave_to_parent(self) except -1:
        """In a child: closes its copies of what the parent had taken for iteration."""
        while self.ready:
            self.pop_ready().close()
        return 0

    # ------------------------------------------------------------------ what it tells

    def stats(self):
        """What has happened so far: an `AcceptorStats`."""
        cdef net_failures_t failures
        cdef double paused
        cdef unsigned long long accepted, shedded, pauses
        cdef long open, high
        cdef int n
        if not self.shut:
            self.usable()
        lock(self.gauge)
        failures = self.failed_before
        if self.gauge.engine != NULL:
            keep_failures(&failures, self.gauge.engine)
        paused = self.paused
        if self.reasons & (FULL | STARVED):
            paused += c.net_monotonic() - self.since
        accepted, shedded, pauses, high = self.accepted, self.shedded, self.pauses, self.high_water
        open = c.net_get(&self.gauge.open)
        unlock(self.gauge)
        failed = {failures.error[n]: failures.count[n] for n in range(c.NET_FAILURES) if failures.count[n]}
        return AcceptorStats(accepted, open, high, shedded, failed, pauses, paused, self.kind())

    @cython.critical_section
    cdef str kind(self):
        if self.gauge.engine == NULL:
            return self.name.decode() if self.name != NULL else ""
        if self.gauge.forks != forks():
            return "forked"  # the parent's engine is not ours, and may be one that we cannot have
        return self.gauge.engine.name.decode()

    def __repr__(self):
        cdef int n, left = 0
        cdef str kind = self.kind()
        cdef long open = c.net_get(&self.gauge.open)
        if self.shut:
            return f"<harken.Acceptor closed, {open} open>"
        with cython.critical_section(self):
            for n in range(self.count):
                left += self.nodes[n].socket != NULL
        paused = ", paused" if self.reasons else ""
        return f"<harken.Acceptor {kind}, {left} listener{'' if left == 1 else 's'}, {open} open{paused}>"


cdef void count_failure(net_failures_t *failures, int error, unsigned long long count) noexcept nogil:
    cdef int n = 0
    while n < c.NET_FAILURES - 1 and failures.error[n] != 0 and failures.error[n] != error:
        n += 1
    failures.error[n] = error
    failures.count[n] += count


cdef void keep_failures(net_failures_t *kept, net_engine_t *engine) noexcept:
    cdef int n
    for n in range(c.NET_FAILURES):
        if engine.failures.count[n]:
            count_failure(kept, engine.failures.error[n], engine.failures.count[n])


cdef int policy_of(object on_overload) except -1:
    if isinstance(on_overload, str):
        if on_overload == "pause":
            return PAUSE
        if on_overload == "shed":
            return SHED
        raise ValueError(f"on_overload must be 'pause', 'shed' or a function, not {on_overload!r}")
    if not callable(on_overload):
        raise TypeError(f"on_overload must be 'pause', 'shed' or a function, not {type(on_overload).__name__}")
    return ASK


cdef tuple listeners_of(object given):
    """They are Sockets, and at least one."""
    cdef tuple found
    if isinstance(given, Socket):
        return (given,)
    try:
        given = iter(given)
    except TypeError:
        raise no_listener(given) from None
    found = tuple(given)
    if not found:
        raise ValueError("an Acceptor needs at least one listener")
    for one in found:
        if not isinstance(one, Socket):
            raise no_listener(one)
    return found


cdef int check_listener(Socket listener, int n, set before) except -1:
    """Does it listen, and is it not among those before it? What a user's __repr__ does comes after all use."""
    cdef int error = 0, listening = 0
    cdef bint open, twice = False
    with cython.critical_section(listener):
        open = listener.handle != c.NET_INVALID
        if open:
            error = c.net_listening(listener.handle, &listening)
            twice = listener.handle in before
            before.add(listener.handle)
    if not open:
        raise ValueError(f"listener {n} is closed, or was given away")
    if listener.kind != c.SOCK_STREAM:
        raise ValueError(f"listener {n} is not a stream socket: {listener!r}")
    if error:
        c.net_raise(error)
    if not listening:
        raise ValueError(f"listener {n} does not listen yet, call its listen(): {listener!r}")
    if twice:
        raise ValueError(f"listener {n} is given twice: {listener!r}")
    return 0


cdef object no_listener(object given):
    cdef str hint = ""
    if isinstance(given, int) or hasattr(given, "fileno"):
        hint = "; harken.adopt() makes one of a descriptor or a socket.socket"
    return TypeError(f"listeners must be Sockets, not {type(given).__name__}{hint}")


cdef int at_least_one(object number, str name) except -1:
    """A count: a whole number; what is more than C can count is as good as no bound. C reads it, for a class derived
    from int may compare as it likes."""
    cdef int overflow = 0
    cdef long value
    if not isinstance(number, int):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    value = c.PyLong_AsLongAndOverflow(number, &overflow)
    if overflow < 0 or (overflow == 0 and value < 1):
        raise ValueError(f"{name} must be at least 1: {number}")
    return 0x7FFFFFFF if overflow else <int>min(value, 0x7FFFFFFF)


cdef bytes engine_of(object name):
    """An engine that this build has, as C wants it; None stays None."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"engine must be a str or None, not {type(name).__name__}")
    if name not in engines():
        raise ValueError(f"there is no engine {name!r} on {c.NET_SYSTEM.decode()}, only {', '.join(engines())}")
    return name.encode()


def engines():
    """The names of the engines that this build has, the best first; a system may still forbid one."""
    cdef int n = 0
    cdef list names = []
    while c.net_engine_name(n) != NULL:
        names.append(c.net_engine_name(n).decode())
        n += 1
    return tuple(names)


include "ending.pxi"
