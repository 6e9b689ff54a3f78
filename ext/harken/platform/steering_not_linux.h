/* Where the system cannot be told which socket gets a connection. The contract is in steering.h. */
#ifndef HARKEN_STEERING_NOT_LINUX_H
#define HARKEN_STEERING_NOT_LINUX_H

#define NET_STEERS 0

static inline int net_steer(
    net_socket_t member, const unsigned *table, size_t count, unsigned probe_port, unsigned probed)
{
    (void)member;
    (void)table;
    (void)count;
    (void)probe_port;
    (void)probed;
    return NET_ENOTSUP;
}

static inline int net_keep_filter(net_socket_t member)
{
    (void)member;
    return NET_ENOTSUP;
}

static inline int net_only_near(net_socket_t s, int family, int on)
{
    (void)s;
    (void)family;
    (void)on;
    return NET_ENOTSUP;
}

static inline int net_hurry(net_socket_t s, int tries, int defer)
{
    (void)s;
    (void)tries;
    (void)defer;
    return NET_ENOTSUP;
}

#endif
