# The door to the platform room: every C name that the compiled modules use is declared here and nowhere else.
# Types are hints (Cython takes widths and signs from the C compiler); functions that cannot raise are noexcept by
# being C. What they return is told in platform/net.h.

from cpython.object cimport PyObject

cdef extern from "platform/net.h" nogil:
    ctypedef long long net_socket_t
    ctypedef int net_length_t "net_length_t"
    ctypedef struct net_buffer_t:
        pass
    ctypedef struct net_waker_t:
        pass
    ctypedef struct net_lock_t:
        pass

    # Addresses: the same names in both worlds.
    struct in_addr:
        unsigned int s_addr
    struct in6_addr:
        pass
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]
    ctypedef union net_address_t:
        sockaddr any
        sockaddr_in ipv4 "in"
        sockaddr_in6 ipv6 "in6"
        sockaddr_un unix "un"
    ctypedef struct net_number_t:
        const char *name
        int number
    ctypedef struct net_option_t:
        const char *name
        int level, option
        int level6, option6
        bint inherited
    struct addrinfo:
        int ai_flags
        int ai_family
        int ai_socktype
        int ai_protocol
        size_t ai_addrlen
        char *ai_canonname
        sockaddr *ai_addr
        addrinfo *ai_next

    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, size_t size)
    unsigned short htons(unsigned short number)
    unsigned short ntohs(unsigned short number)
    unsigned int htonl(unsigned int number)
    unsigned int ntohl(unsigned int number)

    # The steps: called by name. Their error is net_last_error(), on the next line.
    int getaddrinfo(const char *node, const char *service, const addrinfo *hints, addrinfo **result)
    void freeaddrinfo(addrinfo *result)
    int bind(net_socket_t s, const sockaddr *address, net_length_t length)
    int listen(net_socket_t s, int backlog)
    int shutdown(net_socket_t s, int how)
    int getsockname(net_socket_t s, sockaddr *address, net_length_t *length)
    int getpeername(net_socket_t s, sockaddr *address, net_length_t *length)
    int getsockopt(net_socket_t s, int level, int option, char *value, net_length_t *size)
    int setsockopt(net_socket_t s, int level, int option, const char *value, net_length_t size)

    # What differs: see net.h.
    int net_startup(int *first)
    void net_cleanup()
    unsigned int net_forks()
    int net_last_error()
    int net_socket(int family, int type, int proto, net_socket_t *s)
    int net_accept(net_socket_t listener, bint nonblocking, sockaddr *peer, net_length_t *length, net_socket_t *s)
    int net_accept_many(net_socket_t listener, int limit, net_socket_t *taken, int *count)
    int net_close(net_socket_t s)
    void net_nudge(net_socket_t s)
    int net_blocking(net_socket_t s, bint on)
    int net_mode(net_socket_t s, int *blocks)
    int net_inheritable(net_socket_t s, bint on)
    int net_is_inheritable(net_socket_t s, int *on)
    int net_duplicate(net_socket_t s, net_socket_t *copy)
    int net_connect(net_socket_t s, const sockaddr *address, net_length_t length)
    int net_recv(net_socket_t s, void *data, size_t size, int flags, size_t *done)
    int net_send(net_socket_t s, const void *data, size_t size, int flags, size_t *done)
    bint net_buffer(net_buffer_t *buffer, void *data, size_t size)
    int net_recvfrom(net_socket_t s, void *data, size_t size, int flags, sockaddr *address, net_length_t *length,
                     size_t *done)
    int net_sendto(net_socket_t s, const void *data, size_t size, int flags, const sockaddr *address,
                   net_length_t length, size_t *done)
    int net_recvmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t *control_size,
                    int flags, int *told, sockaddr *address, net_length_t *length, size_t *done)
    int net_sendmsg(net_socket_t s, net_buffer_t *buffers, size_t count, void *control, size_t control_size,
                    int flags, const sockaddr *address, net_length_t length, size_t *done)
    double net_limit(net_socket_t s, bint receives)
    size_t net_control_space(size_t size)
    bint net_control_get(void *control, size_t control_size, size_t *at, int *level, int *type, const char **data,
                         size_t *size)
    void net_control_drop(void *control, size_t control_size)
    void net_control_put(void *at, int level, int type, const void *data, size_t size)
    int net_waker_open(net_waker_t *waker)
    void net_waker_pull(net_waker_t *waker)
    void net_waker_close(net_waker_t *waker)
    int net_wait(net_socket_t s, short events, const net_waker_t *waker, int milliseconds, int *outcome)
    void net_pause(int milliseconds)
    int net_describe(net_socket_t s, int *family, int *type, int *proto)
    int net_listening(net_socket_t s, int *on)
    bint net_unbound(int error)
    bint net_taken(int error)
    int net_listener_defaults(net_socket_t s, int family)
    int net_exclusive(net_socket_t s, bint on)
    int net_has_family(int family)
    int net_hold(net_socket_t s, int family, bint on)
    int net_backlog(int wished)
    int net_queue(net_socket_t s, long *queued, long *limit)
    int net_drops(net_socket_t s, long *drops)
    int net_scope_name(unsigned int index, char *name)
    bint net_vsock_put(net_address_t *address, unsigned int cid, unsigned int port, net_length_t *length)
    bint net_vsock_get(const sockaddr *address, unsigned int *cid, unsigned int *port)
    bint net_died_waiting(int error)
    bint net_has_no_name(int error)
    bint net_overloaded(int error)
    double net_monotonic()
    void net_lock_init(net_lock_t *lock)
    void net_lock(net_lock_t *lock)
    void net_unlock(net_lock_t *lock)
    void net_yield()
    long net_add(long *number, long more)
    long net_get(long *number)
    long net_swap(long *number, long value)

    const net_socket_t NET_INVALID
    const net_number_t *net_numbers
    const net_option_t *net_options
    const char *NET_SYSTEM
    const bint NET_FASTOPEN_EARLY
    const int NET_AF_VSOCK, NET_IPPROTO_MPTCP
    const bint NET_EXCLUSIVE_IS_A_CHOICE, NET_JOINS_LATE, NET_SETS_BOTH, NET_TAKES_BOTH
    const bint NET_HAS_PROC
    const size_t NET_PATH_AT, NET_PATH_ROOM
    const bint NET_WAITS_BY_POLL
    const int NET_WAIT_SLICE
    const int NET_TIMED_OUT, NET_READY, NET_WOKEN
    const int NET_DONTWAIT, NET_WAITALL, NET_NEVER_WAITS, NET_NEVER_GATHERS
    const int NET_LIMIT_REACHED
    const int NET_EAFNOSUPPORT, NET_EADDRINUSE, NET_EADDRNOTAVAIL, NET_EBADF, NET_ECONNRESET, NET_EINPROGRESS
    const int NET_EINTR, NET_EISCONN, NET_ENOMEM, NET_EPROTONOSUPPORT, NET_EWOULDBLOCK
    const int NET_EAI_SYSTEM
    const char *NET_ERROR_TEXT(int number)
    const int NET_SOCK_NONBLOCK, NET_SOCK_CLOEXEC, NET_AI_NUMERICSERV

    # Numbers that both worlds have, under the same names.
    const int AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX
    const int SOCK_STREAM
    const int IPPROTO_TCP, IPPROTO_IPV6, TCP_NODELAY
    const int AI_PASSIVE, AI_NUMERICHOST, AI_ADDRCONFIG
    const int EAI_FAMILY, EAI_NONAME, EAI_SERVICE
    const int SOL_SOCKET, SO_ERROR, IPV6_V6ONLY
    const int POLLIN, POLLOUT
    const int INET6_ADDRSTRLEN, IF_NAMESIZE

cdef extern from "platform/engines/engine.h" nogil:
    const int NET_FAILURES, NET_ROOM_FOR_ALL
    ctypedef struct net_failures_t:
        int *error
        unsigned long long *count
    ctypedef struct net_engine_t:
        const char *name
        net_socket_t *listeners
        int count, left, armed, stopped, culprit, full, room, busy, held_up, beside
        int *inside
        net_lock_t *lock
        net_failures_t failures
    const char *net_engine_name(int index)
    int net_engine_open(const char *name, const net_socket_t *listeners, int count, net_engine_t **engine)
    void net_engine_close(net_engine_t *engine)
    void net_engine_abandon(net_engine_t *engine)
    void net_engine_stop(net_engine_t *engine)
    int net_engine_arm(net_engine_t *engine, bint on)
    void net_engine_remove(net_engine_t *engine, int index)
    int net_engine_timer(net_engine_t *engine, int milliseconds)
    void net_engine_wake(net_engine_t *engine)
    void net_engine_calm(net_engine_t *engine)
    int net_engine_fileno(net_engine_t *engine, net_socket_t *handle)
    int net_engine_take(net_engine_t *engine, int limit, bint nonblocking, net_socket_t *taken, int *where, int *count)
    int net_engine_take_beside(net_engine_t *engine, int limit, bint nonblocking, net_socket_t *taken, int *where,
                               int *count)
    int net_engine_wait(net_engine_t *engine, int milliseconds, int *outcome)

cdef extern from "platform/steering.h" nogil:
    const bint NET_STEERS
    int net_steer(net_socket_t member, const unsigned int *table, size_t count, unsigned int probe_port,
                  unsigned int probed)
    size_t net_place_of(unsigned int port, size_t count)
    int net_keep_filter(net_socket_t member)
    int net_only_near(net_socket_t s, int family, bint on)
    int net_hurry(net_socket_t s, int tries, int defer)

cdef extern from "platform/engines/admission.h" nogil:
    const int NET_BY_USER, NET_OVERLOAD, NET_LISTENER, NET_YIELDS
    ctypedef struct net_admission_t:
        long open, high_water, ended, owed
        unsigned int forks
        net_engine_t *engine
        int limit, batch, sheds, shared, greedy, reasons
        double paused
        unsigned long long accepted, shed, pauses
        net_socket_t reserve
        net_failures_t failed_before
    net_admission_t *net_admission_new(unsigned int (*forks_now)() noexcept nogil)
    void net_admission_unreference(net_admission_t *self, long count)
    void net_admission_set_limit(net_admission_t *self, int limit)
    void net_admission_lock(net_admission_t *self)
    void net_admission_unlock(net_admission_t *self)
    void net_admission_wake(net_admission_t *self)
    void net_admission_count_down(net_admission_t *self, long count)
    void net_admission_forget(net_admission_t *self, int index)
    void net_admission_use(net_admission_t *self, net_engine_t *engine)
    void net_admission_drop_reserve(net_admission_t *self)
    int net_admission_room(net_admission_t *self)
    int net_admission_take(net_admission_t *self, int wished, bint nonblocking, net_socket_t *taken, int *where,
                           int *count, int *obstacle)
    int net_admission_refresh(net_admission_t *self)
    bint net_admission_pause(net_admission_t *self)
    void net_admission_wait_for_turn(net_admission_t *self)
    int net_admission_resume(net_admission_t *self)
    void net_admission_shed_now(net_admission_t *self)
    void net_admission_pause_longer(net_admission_t *self, double seconds)
    void net_admission_give(net_admission_t *self)
    long net_admission_release(net_admission_t *self, long count)
    void net_admission_abandon(net_admission_t *self)
    void net_admission_begin_again(net_admission_t *self, net_engine_t *engine)
    net_engine_t *net_admission_finish(net_admission_t *self)
    void net_admission_totals(net_admission_t *self, net_admission_t *totals)

cdef extern from "platform/paths.h" nogil:
    const int NET_NOTHING, NET_A_SOCKET, NET_SOMETHING
    const int NET_NOBODY, NET_SOMEBODY, NET_FORBIDDEN
    const int NET_ENOENT, NET_EEXIST, NET_EACCES, NET_EPERM, NET_ENAMETOOLONG
    const char NET_PATH_SEPARATOR
    ctypedef struct net_folder_t:
        int handle
        const char *text
    const int NET_MARKED
    ctypedef struct net_file_t:
        int kind, mode
        unsigned long long device, inode
    bint net_same_file(const net_file_t *one, const net_file_t *other)
    int net_path_put(const char *path, net_address_t *address, net_length_t *length)
    int net_folder_open(const char *text, net_folder_t *folder)
    void net_folder_close(net_folder_t *folder)
    int net_folder_private(const net_folder_t *folder, const char *name, const char *text, net_folder_t *made)
    int net_folder_remove(const net_folder_t *folder, const char *name)
    int net_file_look(const net_folder_t *folder, const char *name, net_file_t *file)
    int net_file_move(const net_folder_t *source, const char *name, const net_folder_t *to, const char *other)
    int net_file_replace(const net_folder_t *source, const char *name, const net_folder_t *to, const char *other)
    int net_file_exchange(
        const net_folder_t *source, const char *name, const net_folder_t *to, const char *other, bint missed
    )
    int net_file_remove(const net_folder_t *folder, const char *name)
    int net_file_give(
        const net_folder_t *folder, const char *name, const net_file_t *whose, long long uid, long long gid, int mode,
        const char **step
    )
    int net_file_knock(const net_folder_t *folder, const char *name, int *answer)
    int net_file_hold(const net_folder_t *folder, const char *name)
    long net_file_links(int held)
    void net_file_release(int held)
    int net_file_of(net_socket_t s, unsigned long long *inode)
    bint net_begins_with(net_socket_t s, int mode)
    int net_file_way(const net_folder_t *folder, const char *name, char *path, size_t size)

cdef extern from "platform/cpython/raise.h":
    int net_raise(int number) except -1

cdef extern from "platform/cpython/objects.h":
    object object_of(type kind)
    object object_like(object model)
    object tuple_of(type kind, list items)
    bint python_is_ending()
    int may_be_imported_again "NET_MAY_BE_IMPORTED_AGAIN"() except -1

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    const int METH_FASTCALL, METH_KEYWORDS, METH_VARARGS
    object PyCFunction_NewEx(PyMethodDef *method, object bound_to, object module)
    int Py_AtExit(void (*function)() noexcept)
    int Py_AddPendingCall(int (*function)(void *) noexcept, void *argument)
    ctypedef struct PyInterpreterState:
        pass
    PyInterpreterState *PyInterpreterState_Get()
    PyInterpreterState *PyInterpreterState_Main()
    int PyErr_CheckSignals() except -1
    const int PYGEN_RETURN
    int PyIter_Send(object iterator, object value, PyObject **result) except -1
    long PyLong_AsLongAndOverflow(object number, int *overflow) except? -1
    int PyErr_ResourceWarning(object source, Py_ssize_t level, const char *text, ...)
    void PyErr_WriteUnraisable(object where)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_IS_ASCII(object text)
    int PyUnicode_Compare(object one, object other) except? -1
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bint PyIndex_Check(object number)
    bytes PyBytes_FromObject(object source)
    bint PyObject_CheckBuffer(object source)
    long long PyLong_AsLongLongAndOverflow(object number, int *beyond) except? -1

cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    unsigned long PyThread_get_thread_ident()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait) nogil
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible) nogil
    void PyThread_release_lock(PyThread_type_lock lock)
