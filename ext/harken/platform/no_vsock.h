/* For systems on which harken has no addresses of virtual machines (AF_VSOCK). */
#ifndef HARKEN_NO_VSOCK_H
#define HARKEN_NO_VSOCK_H

#define NET_AF_VSOCK (-1)

static inline int net_vsock_put(net_address_t *address, unsigned cid, unsigned port, net_length_t *length)
{
    (void)address;
    (void)cid;
    (void)port;
    *length = 0;
    return 0;
}

static inline int net_vsock_get(const struct sockaddr *address, unsigned *cid, unsigned *port)
{
    (void)address;
    *cid = *port = 0;
    return 0;
}

#endif
