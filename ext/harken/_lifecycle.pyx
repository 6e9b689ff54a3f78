"""Step 0: the socket library is started before the first call, and ended after the last object is gone.

On Windows importing this module calls ``WSAStartup(2.2)``, once a process however many interpreters import it, and
hands ``WSACleanup`` to ``Py_AtExit``, whose callbacks are the last thing that Python does. Never at "last socket
closed", in ``atexit`` or in a finaliser: the last ``WSACleanup`` of a process closes all its sockets, whoever made
them, and Winsock counts, so ours pairs ours and leaves CPython's own start alone.

On POSIX there is nothing to start; the same functions stand there, and watch for forks.
"""

from harken._platform cimport Py_AtExit, net_cleanup, net_forks, net_raise, net_startup


cdef unsigned int forks() noexcept nogil:
    """How often this process was forked since the import; a fork keeps counts of threads that it does not have."""
    return net_forks()


cdef void cleanup() noexcept:
    net_cleanup()


cdef int start() except -1:
    cdef int first
    cdef int error = net_startup(&first)
    if error:
        net_raise(error)
    if first:
        # Py_AtExit has room for 32. When it is full, the end of the process does the cleanup.
        Py_AtExit(cleanup)
    return 0


start()
