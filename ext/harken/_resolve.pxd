from harken._platform cimport addrinfo, net_address_t, net_length_t


cdef class AddrInfoEntry:
    cdef readonly int family, type, proto
    cdef str name
    cdef net_address_t address  # a copy: an entry outlives the list it came from
    cdef net_length_t length


cdef class AddrInfo:
    cdef addrinfo *lists[2]  # owned: freed by freeaddrinfo, once; two when each family was asked on its own
    cdef Py_ssize_t size  # entries in both; 0 when closed, for no name has none
    cdef int system_error  # errno behind EAI_SYSTEM

    cdef Py_ssize_t must_be_open(self) except -1
    cdef void free(self) noexcept
    cdef int ask_once(self, int n, const char *node, const char *service, const addrinfo *hints) noexcept nogil
    cdef int ask(self, const char *node, const char *service, addrinfo *hints, bint may_wait) noexcept
    cdef int fail(self, int error, object host, object port) except -1
    cdef addrinfo *at(self, Py_ssize_t index) noexcept
    cdef AddrInfoEntry entry(self, Py_ssize_t index)


cdef int locate(object address, int family, net_address_t *to, net_length_t *length, str call) except -1
cdef AddrInfo resolve(AddrInfo found, object host, object port, int family, int type, int proto, int flags)
