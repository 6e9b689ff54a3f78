"""Step 5 for a server: the accept engine. Connections from many listeners in batches, never more than the server can
hold, also when descriptors run out.

Who owns what. An `Acceptor` borrows its listeners and owns an engine (platform/engines), which does the system calls,
and a net_admission_t, which counts the connections that are open, and knows when to accept none (engines/admission.h).
Every connection has a reference to that, too: it counts down when it is closed, and wakes the engine when there is room
again. A listener that is closed or given away tells the acceptor before, through a watch_t: the engine forgets the
handle before anybody else can have its number.

Locking. The lock of net_admission_t is over the engine (all of its calls but wait and wake). Nobody who has it waits
for the GIL, so it may be waited for with the GIL. accept(2) may wait, when somebody who shares the listener has made it
block since we looked: the engine gives the lock up for that. Then other threads pause, ask and close as ever; a second
one that wants to accept waits a moment, without the GIL, and finds nothing; and a listener that is closed counts the
accept(2) among its own calls in flight.

`calls` counts the threads that are in the engine without the lock; the last one to leave a closed acceptor closes the
engine. Without a GIL, `shut`, `calls`, `sockets` and `ready` change in the acceptor's critical section, and a
listener's list of watchers in the listener's; the lock may be taken in either, never the other way round.

Forks. The child of a fork must not touch the parent's engine, for an epoll set is shared with it, and the number of a
kqueue is a stranger's: the first use makes a new one.

More than 600 lines: it is one class, with the docstrings that help() shows, and what checks its arguments.
"""

import cython

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_SetObject
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport ceil, isnan

cimport harken._platform as c
from harken._system cimport forks
from harken._platform cimport net_admission_t, net_engine_t, net_failures_t, net_get, net_socket_t
from harken._socket cimport Socket, end_socket, part_with_socket, shut_socket, watch_t

from ._loading import load
from ._overload import report
from ._stats import AcceptorStats

cdef enum:
    BATCH = 64  # connections that accept_many() takes at the most, unless told
    STRIDE = 16  # the same for iteration, where the last of a batch waits until those before it were dealt with
    CHUNK = 128  # connections that one trip into C takes at the most

cdef enum:  # policies
    PAUSE = 0
    SHED = 1
    ASK = 2


cdef struct node_t:
    # One listener, and its word to the acceptor. First is what the listener knows.
    watch_t watch
    PyObject *socket  # borrowed; NULL when it is gone
    PyObject *left  # borrowed: the same, when it is gone, and threads in accept(2) count among its calls; or NULL
    int owed  # how many of them do
    net_admission_t *admission
    int index


cdef void gone(watch_t *watch) noexcept:
    """A listener is about to be closed or given away."""
    cdef node_t *node = <node_t *>watch
    cdef net_admission_t *admission = node.admission
    cdef int tries = 0
    c.net_admission_lock(admission)
    if admission.forks == forks() and admission.engine != NULL:
        c.net_admission_forget(admission, node.index)
        while admission.engine != NULL and admission.engine.inside[node.index] and tries < c.NET_YIELDS:
            c.net_admission_unlock(admission)  # whoever accepts from it has done so in a microsecond, as a rule
            c.net_yield()
            tries += 1
            c.net_admission_lock(admission)
        if admission.engine != NULL and admission.engine.inside[node.index]:
            node.left = node.socket
            node.owed = admission.engine.inside[node.index]
            (<Socket>node.left).calls += node.owed  # we are in its critical section
            c.net_add(&admission.owed, 1)
    node.socket = NULL  # from now on give_back() does not wait for us
    c.net_admission_unlock(admission)


cdef class Accepted(Socket):
    """A `Socket` that an `Acceptor` took, and counts as long as it is open."""

    cdef net_admission_t *admission  # a reference of its own; NULL when it is not counted any more

    cdef int shut(self) noexcept:
        cdef int error = shut_socket(self)
        self.leave_admission()
        return error

    cdef int end(self) noexcept:
        cdef int error = end_socket(self)
        self.leave_admission()
        return error

    @cython.critical_section
    cdef void leave_admission(self) noexcept:
        cdef net_admission_t *admission = self.admission
        self.admission = NULL
        if admission != NULL:
            c.net_admission_count_down(admission, 1)
            c.net_admission_unreference(admission, 1)

    cdef net_socket_t part_with(self, bint nudge) noexcept:
        cdef net_socket_t handle = part_with_socket(self, nudge)
        if not nudge and handle != c.NET_INVALID and self.admission != NULL:
            # Given away open: it is counted until Acceptor.release().
            c.net_admission_give(self.admission)
            self.admission = NULL
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

    cdef net_admission_t *admission  # a reference of its own
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
    cdef int policy
    cdef int calls  # threads in the engine without the lock
    cdef int waiters  # those of them that wait
    cdef bint polled  # fileno() was asked for
    cdef bint begun, shut
    cdef bint frees  # connections inherit from their listeners what stops new ones: see drain()
    cdef object __weakref__
    cdef double logged  # when the last line was

    def __cinit__(self):
        self.sockets = ()
        self.ready = []
        self.model = Accepted.__new__(Accepted)
        self.shut = True
        self.logged = -1e9
        self.admission = c.net_admission_new(forks)
        if self.admission == NULL:
            raise MemoryError()

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
            self.batch, self.stride, self.policy = most_at_once, stride, policy
            self.admission.batch, self.admission.sheds = most_at_once, policy == SHED
            c.net_admission_set_limit(self.admission, most)
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
        c.net_admission_lock(self.admission)
        error = self.open(&made)
        if error == 0:
            error = c.net_socket((<Socket>self.sockets[0]).domain, c.SOCK_STREAM, 0, &self.admission.reserve)
        if error == 0:
            made.room = c.net_admission_room(self.admission)
            error = c.net_engine_arm(made, True)
        if error == 0:
            self.name = made.name
            c.net_admission_use(self.admission, made)
        c.net_admission_unlock(self.admission)
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
        if self.admission == NULL:
            return  # there was no memory for it
        self.close()
        while left:
            left.pop().close()  # nobody can ask for them any more

    def __dealloc__(self):
        if self.admission == NULL:
            return  # there was no memory for it
        self.give_back()
        if self.admission.engine != NULL:
            if self.admission.forks == forks():
                c.net_engine_close(self.admission.engine)
            else:
                c.net_engine_abandon(self.admission.engine)
            self.admission.engine = NULL
        c.net_admission_unreference(self.admission, 1)

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
        self.admission.shared = forks() != 0
        for n in range(self.count):
            listener = <Socket>listeners[n]
            self.admission.shared |= not listener.listens
            self.nodes[n].watch.gone = gone
            self.nodes[n].admission = self.admission
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
            c.net_admission_lock(self.admission)
            watched = self.nodes[n].socket
            c.net_admission_unlock(self.admission)
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
        c.net_admission_lock(self.admission)
        c.net_admission_drop_reserve(self.admission)
        c.net_admission_unlock(self.admission)

    cdef int open(self, net_engine_t **made) noexcept:
        """With the lock: an engine for the listeners that are left. Whoever closes one meanwhile waits for the lock."""
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
        return bool(self.ready) and (not self.admission.reasons & c.NET_BY_USER or self.ended())

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
            c.net_admission_wake(self.admission)
        elif self.polled:
            error = self.refresh()
            if error:
                self.overloaded(error)
        return 0

    cdef bint ended(self) noexcept:
        return self.shut or c.net_get(&self.admission.ended)

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
                if self.admission.greedy:
                    c.net_yield()
                error = c.net_admission_take(self.admission, part, nonblocking, taken, where, &count, &obstacle)
            self.leave()
            if count:
                self.wrap(sockets, nonblocking, taken, where, count, found)
                if count == part and len(found) < wished:
                    continue
            elif obstacle == c.NET_OVERLOAD:
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
                    if obstacle == c.NET_LISTENER:
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
                connection.admission = self.admission
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
                c.net_admission_count_down(self.admission, 1)
                c.net_admission_unreference(self.admission, 1)
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
                if shed:
                    c.net_admission_shed_now(self.admission)
                else:
                    c.net_admission_pause_longer(self.admission, seconds)
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
                report(c.net_get(&self.admission.open), failure, self.policy == SHED)
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
        if self.admission.forks != forks():
            self.begin_again()
        if self.shut:
            return NULL
        self.calls += 1
        self.waiters += 1
        return self.admission.engine

    cdef void leave_waiting(self) noexcept:
        self.leave_for(1)

    cdef void leave(self) noexcept:
        if net_get(&self.admission.owed):
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
            c.net_admission_lock(self.admission)
            back = self.nodes[n].owed
            if back and self.admission.engine != NULL:
                back -= self.admission.engine.inside[n]
            self.nodes[n].owed -= back
            if back and self.nodes[n].owed == 0:
                c.net_add(&self.admission.owed, -1)
            c.net_admission_unlock(self.admission)
            while back > 0:
                (<Socket>self.nodes[n].left).leave(False)
                back -= 1

    cdef int refresh(self) noexcept:
        """After a wake-up: is a pause over?"""
        cdef int error
        with nogil:
            error = c.net_admission_refresh(self.admission)
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
            if self.admission.engine == NULL:
                return -1  # closed by another thread, since we looked
            error = c.net_engine_fileno(self.admission.engine, &handle)
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
        self.usable()
        if c.net_admission_pause(self.admission):  # a thread accepts: it comes back first, unless it is held up
            with nogil:
                c.net_admission_wait_for_turn(self.admission)
        self.share_out()

    def resume(self):
        """Ends pause(), however often that was called."""
        cdef int error
        self.usable()
        error = c.net_admission_resume(self.admission)
        self.share_out()
        if error:
            self.overloaded(error)

    @cython.critical_section
    def release(self, n=1):
        """Reports that ``n`` connections that were given away with detach() or to_socket() are closed: they no longer
        count."""
        cdef int count = at_least_one(n, "n")
        cdef long left = c.net_admission_release(self.admission, count)
        if left < 0:
            raise ValueError(f"release({n}): only {left + count} connections were given away and not released")

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
        Interrupted by an exception, of a signal handler for one, it closes the acceptor and its listeners at once.
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
        return sockets, bool(self.admission.shared)

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
        if self.admission.forks != forks():
            self.leave_to_parent()
        if not self.must_close():
            return
        sockets = self.sockets  # they stay until we leave
        try:
            while self.admission.engine != NULL:
                with nogil:
                    c.net_admission_take(self.admission, CHUNK, False, taken, where, &count, &obstacle)
                if count == 0:
                    break
                self.wrap(sockets, False, taken, where, count, left)
            left.reverse()
            self.keep(left)
        finally:  # no memory for the objects: their connections are closed
            self.leave()

    @cython.critical_section
    cdef bint must_close(self) noexcept:
        if self.shut:
            return False
        self.shut = True
        self.calls += 1  # our own
        if self.admission.forks != forks():
            self.calls, self.waiters = 1, 0
            c.net_admission_lock(self.admission)
            self.nothing_owed()
            c.net_admission_abandon(self.admission)
            c.net_admission_unlock(self.admission)
            return True
        c.net_admission_lock(self.admission)
        self.admission.reasons |= c.NET_BY_USER
        c.net_engine_stop(self.admission.engine)
        c.net_admission_unlock(self.admission)
        return True

    cdef void finish(self) noexcept:
        """The last one out."""
        cdef net_engine_t *engine = c.net_admission_finish(self.admission)
        if engine != NULL:
            self.name = engine.name
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
        return self.admission.limit or None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    # ------------------------------------------------------------------ forks

    cdef int usable(self) except -1:
        if self.shut:
            return c.net_raise(c.NET_EBADF)
        if self.admission.forks != forks():
            self.begin_again()
        return 0

    @cython.critical_section
    cdef int begin_again(self) except -1:
        """In a child: an engine of its own."""
        cdef net_engine_t *made = NULL
        cdef net_admission_t *admission = self.admission
        cdef int error = 0
        cdef list left
        if admission.forks == forks() or self.shut:
            return 0  # another thread was here
        left, self.ready = self.ready, []  # before anybody else takes this acceptor for ours
        c.net_admission_lock(admission)
        error = self.open(&made)
        if error == 0:
            self.nothing_owed()
            self.calls = self.waiters = 0
            self.name = made.name
            c.net_admission_begin_again(admission, made)
        c.net_admission_unlock(admission)
        if error:
            self.ready = left
            return c.net_raise(error)
        while left:
            left.pop().close()
        error = self.refresh()
        if error:
            self.overloaded(error)
        return 0

    cdef void nothing_owed(self) noexcept:
        """In a child, with the lock: the parent's threads stayed behind, and so did their calls."""
        cdef int n
        self.admission.owed = 0
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
        cdef net_admission_t totals
        cdef net_failures_t *failures = &totals.failed_before
        cdef int n
        if not self.shut:
            self.usable()
        c.net_admission_totals(self.admission, &totals)
        failed = {failures.error[n]: failures.count[n] for n in range(c.NET_FAILURES) if failures.count[n]}
        return AcceptorStats(totals.accepted, totals.open, totals.high_water, totals.shed, failed, totals.pauses,
                             totals.paused, self.kind())

    @cython.critical_section
    cdef str kind(self):
        if self.admission.engine == NULL:
            return self.name.decode() if self.name != NULL else ""
        if self.admission.forks != forks():
            return "forked"  # the parent's engine is not ours, and may be one that we cannot have
        return self.admission.engine.name.decode()

    def __repr__(self):
        cdef int n, left = 0
        cdef str kind = self.kind()
        cdef long open = c.net_get(&self.admission.open)
        if self.shut:
            return f"<harken.Acceptor closed, {open} open>"
        with cython.critical_section(self):
            for n in range(self.count):
                left += self.nodes[n].socket != NULL
        paused = ", paused" if self.admission.reasons else ""
        return f"<harken.Acceptor {kind}, {left} listener{'' if left == 1 else 's'}, {open} open{paused}>"


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
