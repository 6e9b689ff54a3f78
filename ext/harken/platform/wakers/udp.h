/* A waker is a UDP socket on the loopback that is connected to itself (Windows, whose select() and WSAPoll() take nothing
 * but sockets): one handle, and no stranger can reach it. Once it is pulled, whoever polls it returns; until it is
 * calmed. */
#ifndef HARKEN_UDP_H
#define HARKEN_UDP_H

typedef struct {
    SOCKET self;
} net_waker_t;

static inline void net_waker_none(net_waker_t *waker) { waker->self = INVALID_SOCKET; }

/* What to poll for reading. */
static inline SOCKET net_waker_handle(const net_waker_t *waker) { return waker->self; }

static inline int net_waker_open(net_waker_t *waker)
{
    struct sockaddr_in name;
    int length = sizeof name, error;
    char junk;
    error = net_socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP, &waker->self);
    if (error)
        return error;
    memset(&name, 0, sizeof name);
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(waker->self, (struct sockaddr *)&name, length) != 0 ||
        getsockname(waker->self, (struct sockaddr *)&name, &length) != 0 ||
        connect(waker->self, (struct sockaddr *)&name, length) != 0) {
        error = WSAGetLastError();
        closesocket(waker->self);
        waker->self = INVALID_SOCKET;
        return error;
    }
    /* What a stranger sent before connect() shut him out would wake everybody for ever. */
    while (recv(waker->self, &junk, 1, 0) >= 0 || WSAGetLastError() == WSAEMSGSIZE)
        ;
    return 0;
}

static inline void net_waker_pull(net_waker_t *waker) { (void)send(waker->self, "", 1, 0); }

/* Once after each pull; tells whether it was pulled. */
static inline int net_waker_calm(net_waker_t *waker)
{
    char one;
    return recv(waker->self, &one, 1, 0) == 1;
}

static inline void net_waker_close(net_waker_t *waker)
{
    closesocket(waker->self);
    waker->self = INVALID_SOCKET;
}

#endif
