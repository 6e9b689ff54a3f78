# harken.listen and harken.bind as Python sees them. Included by _listen.pyx, as its last part.

import sys

from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.string cimport memcpy


cdef object called_listen(PyObject *module, tuple binds, PyObject *keywords):
    return open_all("listen()", binds, {} if keywords == NULL else <dict>keywords, False)


cdef object called_bind(PyObject *module, tuple binds, PyObject *keywords):
    return open_all("bind()", binds, {} if keywords == NULL else <dict>keywords, True)


cdef const char *OPTIONS = (
    # <options c_signature>: written by .ci/options
    b"backlog=None, reuse_port=None, ipv6_only=None, exclusive=None, nodelay=None, keepalive=None, "
    b"keepalive_idle=None, keepalive_interval=None, keepalive_count=None, user_timeout=None, defer_accept=None, "
    b"fastopen=None, rcvbuf=None, sndbuf=None, freebind=None, transparent=None, interface=None, mark=None, tos=None, "
    b"ttl=None, mss=None, congestion=None, priority=None, incoming_cpu=None, busy_poll=None, inheritable=None, "
    b"mode=None, owner=None, group=None, configure=None)\n"
    # </options>
)

cdef const char *ABOUT_LISTEN = b"""\
Opens listening sockets for all binds, or for none: getaddrinfo(), socket(2), bind(2), listen(2).

Each bind stands for one or several addresses: ``"127.0.0.1:27015"``, ``"[::1]:0"``, ``"localhost:http"``; without a
host (``":8080"``, or just ``8080``) for every address of both families, on two sockets that share one port. With port 0
the system chooses one port for all addresses of a bind; of a range, ``":8000-8010"``, the first port that is free on
all of them is taken. ``"unix:/run/app.sock"`` is a unix socket: see `harken._unix`. ``"fd://3"`` and ``"systemd:name"``
are inherited sockets: see `adopt` and `from_systemd`. One that listens already keeps its queue, unless a longer one is
asked for; after an error inherited sockets stay open.

The options are those of `harken.Options`; a bind may have its own: ``":8080?backlog=64"``. All are checked before the
first socket exists. ``backlog`` is how many connections may wait in the queue; by default as many as the system grants.

Returns `Listeners`, in the order of the binds.

Raises TypeError or ValueError for an invalid bind or option, and ListenError, which is an OSError, when a step fails.
Warns (RuntimeWarning) of options that the system does not put in force, and of a backlog that it shortens, and says
what to change.

The sockets have TCP_NODELAY, which accepted connections inherit, and SO_REUSEADDR on POSIX, SO_EXCLUSIVEADDRUSE on
Windows. Child processes do not inherit them. IPv6 sockets accept IPv6 only.
"""

cdef const char *ABOUT_BIND = b"""\
Like `listen`, but stops after bind(2): the addresses are reserved, and clients are refused until ``listen()`` of the
result is called. So a server that takes minutes to be ready knows at once whether it can have its port.

Takes, returns and raises what `listen` does.

No other process can bind the addresses and listen on them meanwhile, and connections of an earlier server in TIME_WAIT
do not prevent bind(2). For that, on Linux SO_REUSEADDR is on during bind(2), then off until listen(2): two sockets that
both have it may be bound to one address, and the first that calls listen(2) gets it. On Windows SO_EXCLUSIVEADDRUSE has
this effect; macOS and the BSDs always refuse the second bind(2).

With ``exclusive=False`` SO_REUSEADDR stays on: the port is kept for another server that is told its number. Linux lets
every socket with that option bind it, and gives it to nobody who binds port 0 or connects.
"""

cdef c.PyMethodDef LISTEN, BIND


cdef object function(c.PyMethodDef *method, const char *name, void *call, const char *about):
    """A function whose signature lists the options, and which yet is called with any keywords, so that an unknown one
    has an error that says what was meant. What describes it is shared by the interpreters of a process, and so is not
    freed."""
    cdef bytes text
    cdef char *room
    if method.ml_name == NULL:
        text = b"%b(*binds, %b--\n\n%b" % (<bytes>name, <bytes>OPTIONS, <bytes>about)
        room = <char *>PyMem_RawMalloc(len(text) + 1)
        if room == NULL:
            raise MemoryError
        memcpy(room, <const char *>text, len(text) + 1)
        method.ml_meth, method.ml_flags, method.ml_doc = call, c.METH_VARARGS | c.METH_KEYWORDS, room
        method.ml_name = name
    return c.PyCFunction_NewEx(method, sys.modules[__name__], __name__)


listen = function(&LISTEN, b"listen", <void *>called_listen, ABOUT_LISTEN)
bind = function(&BIND, b"bind", <void *>called_bind, ABOUT_BIND)
