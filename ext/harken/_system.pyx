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

AF_UNSPEC = c.AF_UNSPEC
AF_INET = c.AF_INET
AF_INET6 = c.AF_INET6
AF_UNIX = c.AF_UNIX

SOCK_STREAM = c.SOCK_STREAM
SOCK_DGRAM = c.SOCK_DGRAM

IPPROTO_IP = c.IPPROTO_IP
IPPROTO_IPV6 = c.IPPROTO_IPV6
IPPROTO_TCP = c.IPPROTO_TCP
IPPROTO_UDP = c.IPPROTO_UDP

AI_PASSIVE = c.AI_PASSIVE
AI_CANONNAME = c.AI_CANONNAME
AI_NUMERICHOST = c.AI_NUMERICHOST
AI_NUMERICSERV = c.AI_NUMERICSERV
AI_ADDRCONFIG = c.AI_ADDRCONFIG
AI_V4MAPPED = c.AI_V4MAPPED
AI_ALL = c.AI_ALL

SOMAXCONN = c.SOMAXCONN

SHUT_RD = c.SHUT_RD
SHUT_WR = c.SHUT_WR
SHUT_RDWR = c.SHUT_RDWR

SOL_SOCKET = c.SOL_SOCKET
SO_ACCEPTCONN = c.SO_ACCEPTCONN
SO_ERROR = c.SO_ERROR
SO_KEEPALIVE = c.SO_KEEPALIVE
SO_LINGER = c.SO_LINGER
SO_RCVBUF = c.SO_RCVBUF
SO_REUSEADDR = c.SO_REUSEADDR
SO_SNDBUF = c.SO_SNDBUF
SO_TYPE = c.SO_TYPE

IPV6_V6ONLY = c.IPV6_V6ONLY
TCP_NODELAY = c.TCP_NODELAY

UNIX_PATH_ROOM = c.NET_PATH_ROOM  # bytes for a unix socket's path, with the NUL that ends it

MSG_PEEK = c.MSG_PEEK
MSG_WAITALL = c.MSG_WAITALL

# Numbers that not every system has: -1 where it lacks them.
AF_VSOCK = c.NET_AF_VSOCK
IPPROTO_MPTCP = c.NET_IPPROTO_MPTCP

# What the options need to know of the system: see _options.py and _plan.py.
SYSTEM = c.NET_SYSTEM.decode("ascii")
EXCLUSIVE_IS_A_CHOICE = bool(c.NET_EXCLUSIVE_IS_A_CHOICE)
JOINS_LATE = bool(c.NET_JOINS_LATE)
SETS_BOTH = bool(c.NET_SETS_BOTH)
TAKES_BOTH = bool(c.NET_TAKES_BOTH)
BUFFER_FACTOR = c.NET_BUFFER_FACTOR
FASTOPEN_EARLY = bool(c.NET_FASTOPEN_EARLY)  # before listen() too
FASTOPEN_MOST = c.NET_FASTOPEN_MOST


cdef dict options():
    """name → (level, option) for IPv4, the same for IPv6, and whether connections have it from their listener."""
    cdef const c.net_option_t *one = c.net_options
    cdef dict found = {}
    while one.name != NULL:
        found[one.name.decode("ascii")] = (one.level, one.option), (one.level6, one.option6), bool(one.inherited)
        one += 1
    return found


OPTIONS = options()
