from harken._platform cimport net_address_t, net_file_t, net_folder_t, net_length_t, net_socket_t


cdef class Entry:
    cdef readonly str shown  # for errors
    cdef bytes path_text, home_text, name_text, token_text, nearby_text, within_text, inner_text
    cdef const char *path  # into those: as it was asked for
    cdef const char *home  # its directory, absolute
    cdef const char *name  # in there
    cdef const char *token  # a private directory in there
    cdef const char *nearby  # the directory as it was asked for; `near` is a macro of Windows
    cdef const char *within  # the private one, in those terms
    cdef const char *inner  # a name in the private one
    cdef net_folder_t folder, beside  # open while there is something to do in them
    cdef net_file_t ours  # what bind(2) made; nothing, where that is not known
    cdef int held  # a descriptor of that, where the system has such, while it is beside
    cdef int place  # where it is: see _paths.pyx
    cdef unsigned int forks  # names the process that made it
    cdef bint used, fresh  # bound once; in nobody's hands yet
    cdef long busy  # names the process of which a thread is in here; else 0
    cdef object __weakref__

    cdef int make(
        self, net_socket_t handle, bint takes_over, long long uid, long long gid, int mode, const char **step
    ) noexcept nogil
    cdef int direct_way(self, net_address_t *address, net_length_t *length) noexcept nogil
    cdef int make_here(
        self, net_socket_t handle, const net_address_t *address, net_length_t length, int proof, long long uid,
        long long gid, int mode, const char **step
    ) noexcept nogil
    cdef int make_beside(
        self, net_socket_t handle, long long uid, long long gid, int mode, const char **step
    ) noexcept nogil
    cdef int put(self) noexcept nogil
    cdef int replace(self, bint living) noexcept nogil
    cdef void go_back(self) noexcept nogil
    cdef void finish(self) noexcept nogil
    cdef void take_away(self) noexcept nogil
    cdef void take_from_here(self) noexcept nogil
    cdef void leave_beside(self) noexcept nogil
    cdef void end(self) noexcept nogil
    cdef void enter(self) noexcept nogil
    cdef void leave(self) noexcept nogil


cdef class Descriptor:
    cdef int number  # owned; -1 when there is none
