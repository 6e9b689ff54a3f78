from harken._platform cimport PyThread_type_lock, net_address_t, net_buffer_t, net_length_t, net_socket_t, net_waker_t
from harken._platform cimport sockaddr


cdef struct watch_t:
    # Somebody who must know before a handle is closed or given away; he owns this, and unlinks it in `gone`.
    watch_t *next
    void (*gone)(watch_t *self) noexcept


cdef struct transfer_t:
    # One call that sends or receives: its arguments, and what it answers beside the number of bytes.
    int call
    int flags  # the caller's
    int told  # recvmsg(): the flags of the message
    char *data
    size_t size
    net_buffer_t *buffers
    size_t count
    void *control
    size_t control_size
    net_length_t length
    net_address_t address


cdef class Socket:
    cdef net_socket_t handle  # owned: closed once, by close() or with this object; NET_INVALID when there is none
    cdef int domain, kind  # Python reads them as `family` and `type`, which are enums there
    cdef readonly int proto
    cdef int calls  # system calls in flight on the handle, by any thread
    cdef int transfers  # those among them that net_nudge() ends: send, recv, connect
    cdef unsigned int forks  # names the process in which the two were counted
    cdef unsigned char blocks  # the mode of the handle itself
    cdef unsigned char held  # bound so that nobody else can listen: undone before listen(2)
    cdef unsigned char listens  # made to by this object
    cdef unsigned char has_waker
    cdef unsigned char fate  # why the handle is not here: see move.pxi
    cdef unsigned char closing  # close() was called; with files open it waits for them
    cdef unsigned short files  # file objects of makefile() that use the handle
    cdef net_waker_t waker  # owned: made by the first accept() that waits, closed with the handle
    cdef int wished  # the backlog for listen(), -1 for the most
    cdef double seconds  # the timeout: negative waits for ever, 0 not at all
    cdef PyThread_type_lock idle  # owned by close(): released by the last call that leaves
    cdef bytes at_accept  # options to set on each accepted connection: see set_at_accept(); mostly None
    cdef watch_t *watchers  # those who must know before the handle goes; NULL for most
    cdef object __weakref__

    cdef int open(self, int family, int type, int proto) noexcept
    cdef int bind_to(self, const sockaddr *address, net_length_t length) noexcept
    cdef int hold(self, int backlog) noexcept
    cdef int listen_for(self, int backlog) noexcept
    cdef int end(self) noexcept

    cdef int enter(self, bint transfer, net_socket_t *handle) except -1
    cdef void leave(self, bint transfer) noexcept
    cdef void drop_waker(self) noexcept
    cdef void forget_other_process(self) noexcept
    cdef net_socket_t let_go(self, bint nudge) noexcept
    cdef net_socket_t part_with(self, bint nudge) noexcept
    cdef int shut(self) noexcept
    cdef void tell_watchers(self) noexcept
    cdef int closed(self) except -1
    cdef int must_be_open(self) except -1

    cdef double deadline(self) noexcept
    cdef int set_blocks(self, bint on) except -1
    cdef int must_not_block(self, bint trusts) except -1
    cdef int wait(self, short events, double deadline, bint wakeable) except -1
    cdef bint ready(self, short events, double deadline, bint wakeable) except -1
    cdef bint waits_elsewhere(self) except -1
    cdef int ensure_waker(self) except -1
    cdef int wait_for_connection(self, double *deadline, double *limit) except -1

    cdef Socket take(self, type kind, net_socket_t handle, bint blocks)
    cdef void apply_at_accept(self, Socket connection) noexcept
    cdef int take_all(self, net_socket_t *taken, int count, list found) except -1
    cdef int connect_to(self, object address) except -1
    cdef Py_ssize_t transfer(self, transfer_t *what, double deadline) except -1
    cdef bint gathers(self, const transfer_t *what) noexcept
    cdef bint wait_again(self, const transfer_t *what, double *deadline, double *limit) except -1
    cdef double limit_of(self, bint receives) noexcept
    cdef bint waited_in_the_kernel(self) noexcept
    cdef bytes received(self, transfer_t *what, Py_ssize_t size)
    cdef Py_ssize_t receive_into(
        self, transfer_t *what, int call, object buffer, object size, object flags, const char *name
    ) except -1
    cdef tuple receive_message(
        self, net_buffer_t *buffers, size_t count, bytes data, Py_ssize_t room, int flags, str call
    )
    cdef int count_file(self, int more) except -1
    cdef bint waits_for_files(self) noexcept
    cdef object name(self, bint of_peer)
    cdef int set_timeout(self, double seconds) except -1
    cdef int set_option(self, int level, int name, const char *value, net_length_t size) noexcept
    cdef int adopt(self, object fileno, int family, int type, int proto) except -1


cdef int backlog_of(object backlog) except -2
cdef int end_socket(Socket self) noexcept
cdef bint in_main_thread() except -1
cdef net_socket_t part_with_socket(Socket self, bint nudge) noexcept
cdef int shut_socket(Socket self) noexcept
