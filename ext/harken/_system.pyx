"""Step 0: the socket library is started before the first call, and ended after the last object is gone.

On Windows importing this module calls ``WSAStartup(2.2)``, once a process however many interpreters import it, and
hands ``WSACleanup`` to ``Py_AtExit``, whose callbacks are the last thing that Python does. Never at "last socket
closed", in ``atexit`` or in a finaliser: the last ``WSACleanup`` of a process closes all its sockets, whoever made
them, and Winsock counts, so ours pairs ours and leaves CPython's own start alone.

On POSIX there is nothing to start; the same functions stand there, and watch for forks.

After that the numbers of this system, by their names: those that the steps need and every platform has.
"""

cimport harken._platform as c


cdef unsigned int forks() noexcept nogil:
    """How often this process was forked since the import; a fork keeps counts of threads that it does not have."""
    return c.net_forks()


cdef void cleanup() noexcept:
    c.net_cleanup()


cdef int start() except -1:
    cdef int first
    cdef int error = c.net_startup(&first)
    if error:
        c.net_raise(error)
    if first:
        # Py_AtExit has room for 32. When it is full, the end of the process does the cleanup.
        c.Py_AtExit(cleanup)
    return 0


start()


cdef int name_numbers(dict names) except -1:
    cdef const c.net_number_t *one = c.net_numbers
    while one.name != NULL:
        names[one.name.decode("ascii")] = one.number
        one += 1
    return 0


name_numbers(globals())

# What the options need to know of the system: see _options.py and _plan.py.
SYSTEM = c.NET_SYSTEM.decode("ascii")
EXCLUSIVE_IS_A_CHOICE = bool(c.NET_EXCLUSIVE_IS_A_CHOICE)
JOINS_LATE = bool(c.NET_JOINS_LATE)
SETS_BOTH = bool(c.NET_SETS_BOTH)
TAKES_BOTH = bool(c.NET_TAKES_BOTH)
HAS_PROC = bool(c.NET_HAS_PROC)  # elsewhere that path is not the kernel's
FASTOPEN_EARLY = bool(c.NET_FASTOPEN_EARLY)  # before listen() too


cdef dict options():
    """name → (level, option) for IPv4, the same for IPv6, and whether connections have it from their listener."""
    cdef const c.net_option_t *one = c.net_options
    cdef dict found = {}
    while one.name != NULL:
        found[one.name.decode("ascii")] = (one.level, one.option), (one.level6, one.option6), bool(one.inherited)
        one += 1
    return found


OPTIONS = options()


def passed():
    """What systemd may have passed on: LISTEN_PID and LISTEN_FDS as they are at the import, and which of the
    descriptors from 3 on are open now and meant for children. One that comes later was opened by this process. None
    without these variables."""
    from os import environ, get_inheritable
    cdef int fd
    pid, count = environ.get("LISTEN_PID"), environ.get("LISTEN_FDS")
    if pid is None or count is None or not (count.isascii() and count.isdigit()) or len(count) > 5:
        return None
    cdef set found = set()
    for fd in range(3, 3 + <int>int(count)):
        try:
            if get_inheritable(fd):
                found.add(fd)
        except OSError:
            pass
    return pid, count, found


PASSED = passed()


def of_this_process(dict made not None, kind):
    """What ``kind()`` returns, made once in each process and kept in ``made``. A lock that is had in this way is free
    in a forked child, also where a thread of the parent has it at that moment."""
    return made.setdefault(forks(), kind())


include "ending.pxi"
