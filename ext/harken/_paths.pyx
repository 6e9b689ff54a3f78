"""Makes, takes over, gives back and removes the path of a unix socket in its directory, without a lock.

Anybody who may open the directory could hold a lock. Instead, single steps of the kernel decide who has a path: bind(2)
to a free name, a rename that fails if the new name exists (RENAME_NOREPLACE), and a rename by which two names change
places (RENAME_EXCHANGE). After an exchange, what was at the path is under a name of ours; there it is examined, and
exchanged back if a process still has it. Nothing is removed at the path itself, where it could be another server's by
then.

**A free path** is bound directly. The kernel tells which inode the socket has (sock_diag), as the path may lead to
something else after bind(2). Owner and mode are set on that inode, which a descriptor holds, and on nothing else. Where
the kernel does not tell, a socket with an owner or a mode is made in a private directory (0700) beside the path, and
moved; one without them is recognized by a bit in its mode, which is enough among servers that are not hostile.

**A path that a dead server left.** The new socket is bound in a private directory and changes places with the dead one.
Only one server can get the dead socket in this way, and that one has won. A server that gets a living socket instead
tested the path just before the winner's exchange: it has lost, and exchanges again, to put back what it got. Several
servers may be doing this at once, each holding the socket that the one before it had put there; so each waits until its
own socket is at the path again before it exchanges back, last in, first out. A server that was there before is missing
for microseconds.

**A takeover** is the same step without the test, and the newest server wins. The old socket is kept until all listeners
of the call have succeeded, and as long as a signal handler can make the call fail: see settle_soon().

Where a system or a file system lacks the two renames, link(2) and rename(2) replace them: the path is missing for a
moment then.

For Python each method is one step: no signal handler, tracer or exception can come in between.
"""

import cython

from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdio cimport snprintf

cimport harken._platform as c
from harken._platform cimport net_address_t, net_file_t, net_length_t, net_socket_t
from harken._socket cimport Socket, in_main_thread
from harken._system cimport forks

import sys
from os import fsdecode, fsencode, path as paths, urandom

cdef enum:
    # Entry.place
    NOWHERE = 0  # there is no path yet, or not any more
    HERE = 1  # at the path; nothing is beside it
    BESIDE = 2  # in the private directory, to be published
    SWAPPED = 3  # at the path; what was there is in the private directory

    # How the socket that bind(2) made is told from a file that another process has put in its place.
    BY_NUMBER = 0  # the kernel tells the socket's inode
    BY_MARK = 1  # for a moment its mode has a bit that no other server's socket has
    NONE = 2  # not at all: whatever is there right after bind(2) is assumed to be it

    TAKEN = -1  # of make_here(): no error number of any system
    TURNS = 100  # how often to look again at what has changed meanwhile
    PATIENCE = 2000  # milliseconds to wait for another process that is in the middle of the same steps


@cython.final
cdef class Entry:
    """The entry of a socket in a directory. The process that made it removes it, by ``remove()``."""

    def __cinit__(self):
        self.folder.handle = self.beside.handle = self.held = -1

    def __init__(self, str shown, str path not None, str absolute not None):
        """``path`` as it was asked for, and from the root; ``shown`` is what errors call it."""
        near, name = paths.split(path)
        if "\0" in path:
            raise ValueError("a path has no NUL in it")
        if self.path_text is not None:
            raise RuntimeError("this Entry has its path already")
        token = f".harken-{urandom(6).hex()}"
        within = paths.join(near, token)
        self.shown, self.forks = shown, forks()
        self.path_text, self.home_text = fsencode(path), fsencode(paths.dirname(absolute))
        self.name_text, self.token_text = fsencode(name), fsencode(token)
        self.nearby_text, self.within_text = fsencode(near or "."), fsencode(within)
        # Under its own name it is found by who lists the system's sockets. There may be no room for that.
        self.inner_text = self.name_text
        if len(self.within_text) + 1 + len(self.name_text) >= <Py_ssize_t>c.NET_PATH_ROOM:
            self.inner_text = b"s"
        self.path, self.home, self.name, self.token = self.path_text, self.home_text, self.name_text, self.token_text
        self.nearby, self.within, self.inner = self.nearby_text, self.within_text, self.inner_text

    def __dealloc__(self):
        with nogil:  # to give back what was taken over may take a while
            # What is beside the path nobody can publish any more, and nobody else would find it.
            if self.fresh or self.place == BESIDE:
                self.take_away()
            self.end()

    @property
    def path(self):
        """From the root, whether it is there or not."""
        return fsdecode(paths.join(self.home_text, self.name_text))

    @property
    def asked(self):
        """As it was asked for."""
        return fsdecode(self.path_text)

    @property
    def pending(self):
        """Is a path still to be taken over, by publish()?"""
        return self.place == BESIDE

    def bind(self, Socket listener not None, bint takes_over=False, uid=-1, gid=-1, mode=-1, bint fresh=False):
        """bind(2), with owner and mode in force before anybody can connect; -1 leaves a thing as it is.

        ``takes_over``: a live server's path is had by publish(), later. ``fresh``: until settle_soon() is through, the
        path is as it was before when this object is dropped.

        Raises ListenError: ``bind``; ``connect``, where it cannot be told whether a server lives; ``chown``; ``chmod``.
        """
        cdef const char *step = b"bind"
        cdef net_socket_t handle = listener.handle
        cdef long long user = uid, group = gid
        cdef int error, bits = mode
        if self.path == NULL or self.used:
            raise RuntimeError("this Entry has its socket already, or no path")
        self.used, self.fresh = True, fresh
        with nogil:
            self.enter()
            error = self.make(handle, takes_over, user, group, bits, &step)
            if error:
                self.take_away()
            if self.place != BESIDE:
                self.end()
            self.leave()
        if error:
            fail(self, step.decode("ascii"), error)

    def publish(self):
        """A path that was to be taken over is ours from now on; what was there is kept until settle(). It listens by
        now. Raises ListenError (``rename``), and all is as it was."""
        cdef int error
        with nogil:
            self.enter()
            error = self.put() if self.place == BESIDE else 0
            self.leave()
        if error:
            fail(self, "rename", error)

    def settle(self):
        """From now on what was taken over is not given back, whatever happens."""
        with nogil:
            self.enter()
            self.fresh = False
            if self.place == SWAPPED:
                self.finish()
            if self.place != BESIDE:
                self.end()
            self.leave()

    def remove(self):
        """Never fails: what cannot be removed stays, as that of a killed server does. What was taken over and is not
        settled is given back. Before the handle is closed: until then no other can get the inode's number. A forked
        child removes nothing."""
        with nogil:
            self.enter()
            self.take_away()
            self.end()
            self.leave()

    cdef int make(
        self, net_socket_t handle, bint takes_over, long long uid, long long gid, int mode, const char **step
    ) noexcept nogil:
        cdef int error, answer, _
        cdef bint private, gives = mode >= 0 or uid >= 0 or gid >= 0
        cdef int proof = BY_NUMBER  # how it is known again behind bind(2)
        cdef char way[64]
        cdef net_address_t address
        cdef net_length_t length = 0
        cdef unsigned long long inode
        cdef net_file_t there
        error = c.net_folder_open(self.nearby, &self.folder)
        if error:
            return error
        private = self.direct_way(&address, &length) != 0
        if private and c.net_file_way(&self.folder, b"", way, sizeof(way)):
            return c.NET_ENAMETOOLONG  # nobody could connect to it
        if c.net_file_of(handle, &inode):
            proof = NONE
            private = private or gives
        if gives and c.net_file_way(&self.folder, b"", way, sizeof(way)):
            private = True
        if mode >= 0 and not c.net_begins_with(handle, 0):
            private = True
        if proof == NONE and not private and c.net_file_way(&self.folder, b"", way, sizeof(way)) == 0:
            if c.net_begins_with(handle, 0o777 | c.NET_MARKED):
                proof = BY_MARK
        for _ in range(TURNS):
            if self.place == NOWHERE and not private:
                error = self.make_here(handle, &address, length, proof, uid, gid, mode, step)
                if error != TAKEN:
                    return error
            error = c.net_file_look(&self.folder, self.name, &there)
            if error:
                return error
            if there.kind == c.NET_SOMETHING:
                return c.NET_EEXIST
            answer = c.NET_NOBODY
            if there.kind == c.NET_A_SOCKET:
                error = c.net_file_knock(&self.folder, self.name, &answer)
                if error == c.NET_ENOENT:
                    continue
                if error:
                    return error
                if answer != c.NET_NOBODY and not takes_over:
                    if answer == c.NET_FORBIDDEN:
                        step[0] = b"connect"
                        return c.NET_EACCES
                    return c.NET_EADDRINUSE
            elif not private and self.place == NOWHERE:
                continue
            if self.place == NOWHERE:
                if proof == BY_MARK:
                    c.net_begins_with(handle, 0o777)  # as every socket does
                error = self.make_beside(handle, uid, gid, mode, step)
                if error:
                    return error
                step[0] = b"bind"
            if answer != c.NET_NOBODY:
                return 0  # publish() will move it
            if there.kind == c.NET_NOTHING:
                error = c.net_file_move(&self.beside, self.inner, &self.folder, self.name)
                if error == 0:
                    self.leave_beside()
                    self.place = HERE
                    return 0
            else:
                error = self.replace(False)
                if error == c.NET_EADDRINUSE and takes_over and self.place == BESIDE:
                    return 0
            if error != c.NET_ENOENT and error != c.NET_EEXIST:
                return error
            if self.place != BESIDE:
                return c.NET_EADDRINUSE
        return c.NET_EADDRINUSE

    cdef int direct_way(self, net_address_t *address, net_length_t *length) noexcept nogil:
        """The path as an address, or where it is too long, the way through its directory."""
        cdef char way[64 + 256]
        if c.net_path_put(self.path, address, length) == 0:
            return 0
        return c.net_file_way(&self.folder, self.name, way, sizeof(way)) or c.net_path_put(way, address, length)

    cdef int make_here(
        self, net_socket_t handle, const net_address_t *address, net_length_t length, int proof, long long uid,
        long long gid, int mode, const char **step
    ) noexcept nogil:
        """Binds at the path itself. TAKEN if something is there."""
        cdef net_file_t there
        cdef bint gives = mode >= 0 or uid >= 0 or gid >= 0
        cdef int error
        if c.bind(handle, &address[0].any, length) != 0:
            error = c.net_last_error()
            return TAKEN if error == c.NET_EADDRINUSE else error
        self.place = HERE
        error = c.net_file_look(&self.folder, self.name, &there)
        if there.kind == c.NET_A_SOCKET and is_proven(handle, proof, &there):
            self.ours = there
        if self.ours.kind == c.NET_NOTHING and (gives or there.kind == c.NET_SOMETHING):
            return error or (c.NET_EEXIST if there.kind == c.NET_SOMETHING else c.NET_EADDRINUSE)
        if proof == BY_MARK and self.ours.kind != c.NET_NOTHING:
            c.net_file_give(&self.folder, self.name, &self.ours, -1, -1, there.mode & ~c.NET_MARKED, step)
            step[0] = b"bind"
        if not gives:
            return 0  # perhaps a server that checks nothing has replaced it already: it is not ours to remove
        error = c.net_file_give(&self.folder, self.name, &self.ours, uid, gid, mode, step)
        return c.NET_EADDRINUSE if error == c.NET_EEXIST or error == c.NET_ENOENT else error

    cdef int make_beside(
        self, net_socket_t handle, long long uid, long long gid, int mode, const char **step
    ) noexcept nogil:
        """Binds in a private directory beside the path."""
        cdef char way[64 + 256]
        cdef net_address_t address
        cdef net_length_t length = 0
        cdef int error = c.net_folder_private(&self.folder, self.token, self.within, &self.beside)
        if error:
            return error
        self.place = BESIDE
        error = c.net_file_way(&self.beside, self.inner, way, sizeof(way)) or c.net_path_put(way, &address, &length)
        if self.inner == self.name or error:
            # By the path, which may lead elsewhere by now: then the socket is not in our private directory.
            error = put_joined(self.within, self.inner, &address, &length)
        if error == 0 and c.bind(handle, &address.any, length) != 0:
            error = c.net_last_error()
        if error == 0:
            error = c.net_file_look(&self.beside, self.inner, &self.ours)
        if error == 0 and self.ours.kind != c.NET_A_SOCKET:
            error = c.NET_ENOENT
        if error == 0 and (mode >= 0 or uid >= 0 or gid >= 0):
            error = c.net_file_give(&self.beside, self.inner, NULL, uid, gid, mode, step)
        self.held = c.net_file_hold(&self.beside, self.inner)
        return error

    cdef int put(self) noexcept nogil:
        """Moves the socket from beside the path to the path, whichever server has that."""
        cdef net_file_t there
        cdef int error, _
        for _ in range(TURNS):
            error = c.net_file_look(&self.folder, self.name, &there)
            if error == 0 and there.kind == c.NET_SOMETHING:
                return c.NET_EEXIST
            if error == 0 and c.net_same_file(&there, &self.ours):
                self.place = HERE  # by another process, with which we have it in common since a fork
                return 0
            if error == 0 and there.kind == c.NET_A_SOCKET:
                error = self.replace(True)
            elif error == 0:
                error = c.net_file_move(&self.beside, self.inner, &self.folder, self.name)
                if error == 0:
                    self.leave_beside()
                    self.place = HERE
            if (error != c.NET_ENOENT and error != c.NET_EEXIST) or self.place != BESIDE:
                return error
        return c.NET_EADDRINUSE

    cdef int replace(self, bint living) noexcept nogil:
        """Changes places with the socket at the path: a dead one, which is removed, or a living one, which is kept."""
        cdef net_file_t there
        cdef int answer = c.NET_SOMEBODY, error
        error = c.net_file_exchange(&self.beside, self.inner, &self.folder, self.name, True)
        if error:
            return error
        self.place = SWAPPED
        error = c.net_file_look(&self.beside, self.inner, &there)
        if error == 0 and there.kind == c.NET_A_SOCKET:
            if living:
                return 0
            if c.net_file_knock(&self.beside, self.inner, &answer) == 0 and answer == c.NET_NOBODY:
                self.finish()
                return 0
        self.go_back()
        return c.NET_EEXIST if there.kind == c.NET_SOMETHING else c.NET_EADDRINUSE

    cdef void go_back(self) noexcept nogil:
        """What was at the path gets it back, and what is ours is beside it again: unless others have it by now."""
        cdef net_file_t there, here
        cdef int answer, turn
        for turn in range(PATIENCE):
            if c.net_file_look(&self.beside, self.inner, &there) == 0 and c.net_same_file(&there, &self.ours):
                self.place = BESIDE
                return
            if there.kind == c.NET_NOTHING or c.net_file_look(&self.folder, self.name, &here) != 0:
                break
            if here.kind == c.NET_NOTHING:
                if c.net_file_move(&self.beside, self.inner, &self.folder, self.name) == 0:
                    break
            elif c.net_same_file(&here, &self.ours):
                if c.net_file_exchange(&self.beside, self.inner, &self.folder, self.name, False) != 0:
                    continue
                if c.net_file_look(&self.beside, self.inner, &there) == 0 and c.net_same_file(&there, &self.ours):
                    continue
                # Between the look and the step somebody has put his own over ours: as if it had not been.
                c.net_file_exchange(&self.beside, self.inner, &self.folder, self.name, True)
            elif c.net_file_links(self.held) == 0:
                break  # who has removed ours from there would have removed what was there
            elif c.net_file_knock(&self.beside, self.inner, &answer) == 0 and answer == c.NET_NOBODY:
                break  # the server that had it is gone by now
            if turn == PATIENCE - 1:  # a process was killed, or stopped, in the middle of the same steps
                c.net_file_exchange(&self.beside, self.inner, &self.folder, self.name, True)
            c.net_pause(turn > 0)
        # Not what is no socket, however it came there, nor what cannot be brought back, as when the file system has
        # become read-only: that is found in the directory, which stays then.
        if c.net_file_look(&self.beside, self.inner, &there) == 0 and there.kind == c.NET_A_SOCKET:
            if c.net_file_look(&self.folder, self.name, &here) == 0 and not c.net_same_file(&here, &self.ours):
                c.net_file_remove(&self.beside, self.inner)
        self.leave_beside()
        self.place = NOWHERE

    cdef void finish(self) noexcept nogil:
        """It is ours for good."""
        self.place = HERE
        c.net_file_remove(&self.beside, self.inner)
        self.leave_beside()

    cdef void take_away(self) noexcept nogil:
        self.fresh = False
        if self.forks == forks():
            if self.place == SWAPPED:
                self.go_back()
            if self.place == BESIDE:
                c.net_file_remove(&self.beside, self.inner)
                self.leave_beside()
            elif self.place == HERE and self.ours.kind == c.NET_A_SOCKET:
                self.take_from_here()
        self.place = NOWHERE

    cdef void take_from_here(self) noexcept nogil:
        """Examines it, moves it aside, examines it again, and removes it there, where nobody else can put anything."""
        cdef net_file_t there
        cdef int answer = c.NET_SOMEBODY
        if self.folder.handle < 0 and c.net_folder_open(self.home, &self.folder) != 0:
            return
        if c.net_file_look(&self.folder, self.name, &there) != 0 or not c.net_same_file(&there, &self.ours):
            return
        if c.net_file_replace(&self.folder, self.name, &self.folder, self.token) != 0:
            return
        if c.net_file_look(&self.folder, self.token, &there) == 0 and not c.net_same_file(&there, &self.ours):
            # Another server has just replaced ours. It gets its path back, also from one that found it missing.
            if c.net_file_move(&self.folder, self.token, &self.folder, self.name) == 0:
                return
            if there.kind == c.NET_A_SOCKET and c.net_file_knock(&self.folder, self.token, &answer) == 0:
                if answer != c.NET_NOBODY:
                    c.net_file_exchange(&self.folder, self.token, &self.folder, self.name, True)
        c.net_file_remove(&self.folder, self.token)

    cdef void leave_beside(self) noexcept nogil:
        c.net_file_release(self.held)
        self.held = -1
        c.net_folder_close(&self.beside)
        c.net_folder_remove(&self.folder, self.token)

    cdef void enter(self) noexcept nogil:
        """One thread at a time: each of these steps is short. `busy` names the process: a thread of the parent that was
        in here at a fork is not in the child, and never leaves there."""
        cdef long here = <long>forks() + 1
        while c.net_swap(&self.busy, here) == here:
            c.net_yield()

    cdef void leave(self) noexcept nogil:
        c.net_swap(&self.busy, 0)

    cdef void end(self) noexcept nogil:
        c.net_file_release(self.held)
        self.held = -1
        c.net_folder_close(&self.beside)
        c.net_folder_close(&self.folder)


cdef bint is_proven(net_socket_t handle, int proof, const net_file_t *there) noexcept nogil:
    """Whether this is what the socket was bound to."""
    cdef unsigned long long inode
    if proof == BY_NUMBER:
        return c.net_file_of(handle, &inode) == 0 and <unsigned int>there.inode == <unsigned int>inode
    return proof == NONE or (there.mode & c.NET_MARKED) != 0


@cython.final
cdef class Descriptor:
    """The descriptor that a call returns, closed with this object at the latest: ``Descriptor(os.open, path, flags)``.
    POSIX.

    A number in a variable of Python would be lost to a signal handler that raises between the call and the ``try``.
    """

    def __cinit__(self):
        self.number = -1

    def __init__(self, call, *arguments):
        if self.number >= 0:
            raise RuntimeError("this Descriptor has its number already")
        self.number = call(*arguments)

    def __dealloc__(self):
        c.net_file_release(self.number)

    def fileno(self):
        """The number; -1 when closed."""
        return self.number

    def __enter__(self):
        return self.number

    def __exit__(self, *exc_info):
        cdef int number = self.number
        self.number = -1
        c.net_file_release(number)


cdef int put_joined(
    const char *folder, const char *name, net_address_t *address, net_length_t *length
) noexcept nogil:
    cdef char whole[512]
    if snprintf(whole, sizeof(whole), b"%s%c%s", folder, c.NET_PATH_SEPARATOR, name) >= <int>sizeof(whole):
        return c.NET_ENAMETOOLONG
    return c.net_path_put(whole, address, length)


cdef int fail(Entry entry, str step, int error) except -1:
    """Raises it, as a ListenError."""
    from harken._unix import refused
    try:
        c.net_raise(error)
    except OSError as reason:
        refused(step, entry.shown, fsdecode(entry.path_text), reason)


def settle_soon(list entries not None):
    """Their paths are theirs for good, as soon as whoever asked for them has them in his hands.

    A signal handler that raises may run when a call has returned, and before its result is stored: what was taken over
    is lost then, together with the listeners, although nobody has heard of them. Python runs signal handlers first, and
    then what was given to Py_AddPendingCall, before it stores the result. Until then, who is dropped gives back. Only
    the main thread runs signal handlers. No Python code may follow in the call that uses this: it would be the next."""
    cdef list waiting
    if c.PyInterpreterState_Get() == c.PyInterpreterState_Main() and in_main_thread():
        caller = frame_on_top()
        if caller is not None:
            waiting = [caller, caller.f_lasti, *[PyWeakref_NewRef(entry, None) for entry in entries]]
            if settle_later(waiting):
                return
    for entry in entries:
        (<Entry>entry).settle()


cdef object frame_on_top():
    """None where C has called us, as at the beginning of a thread."""
    try:
        return sys._getframe()
    except ValueError:
        return None


cdef bint settle_later(list waiting) noexcept:
    """False where too much waits already."""
    Py_INCREF(waiting)
    if c.Py_AddPendingCall(settle_now, <void *>waiting) == 0:
        return True
    Py_DECREF(waiting)
    return False


cdef int settle_now(void *argument) noexcept:
    cdef list waiting = <list>argument
    cdef Py_ssize_t n
    Py_DECREF(waiting)
    try:
        if not (is_in_between(waiting[0], waiting[1]) and settle_later(waiting)):
            for n in range(2, len(waiting)):
                entry = waiting[n]()
                if entry is not None:
                    (<Entry>entry).settle()
    except BaseException:
        pass  # no memory: what is not settled stays as it is, and is given back when it is closed
    return 0


cdef bint is_in_between(object caller, object position) except -1:
    """Has a signal handler begun, which may raise yet? Then the caller still stands where he called us, and the handler
    runs in a frame on top of his."""
    cdef object at = frame_on_top()
    if at is caller or caller.f_lasti != position:
        return False
    while at is not None and at is not caller:
        at = at.f_back
    return at is not None


include "ending.pxi"
