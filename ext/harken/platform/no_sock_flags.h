/* For systems on which a new handle is inheritable and has a mode, and both are changed by further calls (macOS). */
#ifndef HARKEN_NO_SOCK_FLAGS_H
#define HARKEN_NO_SOCK_FLAGS_H

#define NET_SOCK_CLOEXEC 0
#define NET_SOCK_NONBLOCK 0

static inline int net_finish_socket(int nonblocking, net_socket_t *s)
{
    int error = net_inheritable(*s, 0);
    if (error == 0)
        error = net_blocking(*s, !nonblocking);
#ifdef SO_NOSIGPIPE /* where MSG_NOSIGNAL may be unknown */
    int one = 1;
    /* Accepted sockets have it from their listener, and a connection that died already may refuse it. */
    (void)setsockopt(*s, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    if (error) {
        net_close(*s);
        *s = NET_INVALID;
    }
    return error;
}

static inline int net_socket(int family, int type, int proto, net_socket_t *s)
{
    *s = socket(family, type, proto);
    return *s < 0 ? errno : net_finish_socket(0, s);
}

static inline int net_accept(net_socket_t listener, int nonblocking, struct sockaddr *peer, net_length_t *length,
                             net_socket_t *s)
{
    *s = accept(listener, peer, length);
    if (*s < 0)
        return errno;
    /* macOS hands out connections that were reset in the queue, with an empty address. */
    if (length && *length == 0) {
        net_close(*s);
        *s = NET_INVALID;
        return ECONNABORTED;
    }
    return net_finish_socket(nonblocking, s);
}

#endif
