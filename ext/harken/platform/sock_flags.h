/* For systems on which socket() and accept4() make a handle that is not inheritable, and non-blocking, in one call. */
#ifndef HARKEN_SOCK_FLAGS_H
#define HARKEN_SOCK_FLAGS_H

#define NET_SOCK_CLOEXEC SOCK_CLOEXEC
#define NET_SOCK_NONBLOCK SOCK_NONBLOCK

static inline int net_socket(int family, int type, int proto, net_socket_t *s)
{
    *s = socket(family, type | SOCK_CLOEXEC, proto);
    return *s < 0 ? errno : 0;
}

static inline int net_accept(net_socket_t listener, int nonblocking, struct sockaddr *peer, net_length_t *length,
                             net_socket_t *s)
{
    *s = accept4(listener, peer, length, SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0));
    return *s < 0 ? errno : 0;
}

#endif
