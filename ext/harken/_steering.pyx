"""Which of the sockets of one port gets a connection: platform/steering.h, for `_group` and for a drain."""

import cython

from libc.stdlib cimport calloc, free

cimport harken._platform as c
from harken._platform cimport net_socket_t
from harken._socket cimport Socket

STEERS = bool(c.NET_STEERS)
"""Can this system be told which socket gets a connection? Linux."""


def steer(Socket member not None, table, unsigned int probe_port=0, unsigned int probed=0):
    """From now on new connections to the port of ``member`` go to the members that are in ``table``, by their numbers;
    who stands there twice gets twice as many. A client whose port is ``probe_port`` gets the member ``probed``.

    setsockopt(SO_ATTACH_REUSEPORT_CBPF) on Linux. Raises OSError; EOPNOTSUPP on other systems."""
    cdef list numbers = list(table)
    cdef Py_ssize_t n, count = len(numbers)
    cdef int error
    cdef unsigned int *places = <unsigned int *>calloc(count or 1, sizeof(unsigned int))
    if places == NULL:
        raise MemoryError()
    try:
        for n in range(count):
            places[n] = numbers[n]
        with cython.critical_section(member):
            error = c.net_steer(handle_of(member), places, count, probe_port, probed)
    finally:
        free(places)
    if error:
        c.net_raise(error)


def place_of(unsigned int port, Py_ssize_t count):
    """At which place of a table with ``count`` places a client with this port finds its member."""
    return c.net_place_of(port, count)


def keep_filter(Socket member not None):
    """No option of this socket can attach another program from now on. setsockopt(SO_LOCK_FILTER). Raises OSError."""
    cdef int error
    with cython.critical_section(member):
        error = c.net_keep_filter(handle_of(member))
    if error:
        c.net_raise(error)


def only_near(Socket sock not None, bint on):
    """Drops the first packets of connections from other programs than those that set a TTL of 255, and lets handshakes
    go on that have begun: a listener that is to take no new connections. Its connections inherit this, and are to be
    freed of it. setsockopt(IP_MINTTL, IPV6_MINHOPCOUNT) on Linux. Raises OSError; EOPNOTSUPP on other systems."""
    cdef int error
    with cython.critical_section(sock):
        error = c.net_only_near(handle_of(sock), sock.domain, on)
    if error:
        c.net_raise(error)


def hurry(Socket listener not None, int tries, int defer):
    """For handshakes that are open: ``tries``, how often the SYN-ACK is repeated (0: as before), and ``defer``, seconds
    for which a silent client is not handed out. setsockopt(TCP_SYNCNT, TCP_DEFER_ACCEPT) on Linux. Raises OSError."""
    cdef int error
    with cython.critical_section(listener):
        error = c.net_hurry(handle_of(listener), tries, defer)
    if error:
        c.net_raise(error)


cdef net_socket_t handle_of(Socket sock) except? -1:
    if sock.handle == c.NET_INVALID:
        c.net_raise(c.NET_EBADF)
    return sock.handle


include "ending.pxi"
