/* Programs of classic BPF for SO_REUSEPORT groups. The contract is in steering.h. */
#ifndef HARKEN_STEERING_ON_LINUX_H
#define HARKEN_STEERING_ON_LINUX_H

#include <linux/filter.h>

#define NET_STEERS 1

/* Numbers that the system has had for longer than some C libraries name them. */
#ifndef SO_LOCK_FILTER
#define SO_LOCK_FILTER 44
#endif
#ifndef SO_ATTACH_REUSEPORT_CBPF
#define SO_ATTACH_REUSEPORT_CBPF 51
#endif
#ifndef IP_MINTTL
#define IP_MINTTL 21
#endif
#ifndef IPV6_MINHOPCOUNT
#define IPV6_MINHOPCOUNT 73
#endif

/* The client's port, of IPv4 with or without options, and of IPv6 without extension headers; behind those another number
 * stands there, which chooses as well as any. What the program reads begins behind the TCP header; the IP header is at
 * SKF_NET_OFF. */
static const struct sock_filter net_client_port[] = {
    BPF_STMT(BPF_LD | BPF_B | BPF_ABS, (unsigned)SKF_NET_OFF), /* version and length of the header */
    BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 4),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 6, 3, 0),
    BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, (unsigned)SKF_NET_OFF), /* IPv4: X is the length in bytes */
    BPF_STMT(BPF_LD | BPF_H | BPF_IND, (unsigned)SKF_NET_OFF),
    BPF_STMT(BPF_JMP | BPF_JA, 1),
    BPF_STMT(BPF_LD | BPF_H | BPF_ABS, (unsigned)(SKF_NET_OFF + 40)), /* IPv6 */
};
enum { NET_CLIENT_PORT = sizeof net_client_port / sizeof *net_client_port };

/* `table`: the numbers of members, one for each place; who stands there twice gets twice as many connections. A client
 * with `probe_port` gets the member `probed`; 0: there is none. */
static inline int net_steer(
    net_socket_t member, const unsigned *table, size_t count, unsigned probe_port, unsigned probed)
{
    struct sock_filter *code;
    struct sock_fprog program;
    size_t at = 0, n, end;
    int error = 0;
    if (count == 0)
        return EINVAL;
    if (count > (BPF_MAXINSNS - NET_CLIENT_PORT - 8) / 2)
        return E2BIG;
    code = malloc(BPF_MAXINSNS * sizeof *code);
    if (code == NULL)
        return ENOMEM;
    memcpy(code, net_client_port, sizeof net_client_port);
    at = NET_CLIENT_PORT;
    if (probe_port) {
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, probe_port, 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, probed);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, NET_SPREAD);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, NET_SPREAD_SHIFT);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, (unsigned)count);
    /* From place to member: one or two steps for each run of consecutive numbers, in the order of the places. */
    for (n = 0; n < count; n = end) {
        for (end = n + 1; end < count && table[end] == table[end - 1] + 1;)
            end++;
        if (end < count) {
            if (end == n + 1)
                code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)n, 0, 1);
            else
                code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (unsigned)end, 2, 0);
        }
        if (end == n + 1) {
            code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, table[n]);
        } else {
            code[at++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, table[n] - (unsigned)n);
            code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_A, 0);
        }
    }
    program.len = (unsigned short)at;
    program.filter = code;
    if (setsockopt(member, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) != 0)
        error = errno;
    free(code);
    return error;
}

static inline int net_keep_filter(net_socket_t member)
{
    int on = 1;
    return setsockopt(member, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on) ? errno : 0;
}

/* An IPv6 socket that takes IPv4 too has a setting for each. */
static inline int net_only_near(net_socket_t s, int family, int on)
{
    int least = on ? 255 : 0, error = 0;
    if (family == AF_INET6 && setsockopt(s, IPPROTO_IPV6, IPV6_MINHOPCOUNT, &least, sizeof least) != 0)
        error = errno;
    if (setsockopt(s, IPPROTO_IP, IP_MINTTL, &least, sizeof least) != 0 && family == AF_INET)
        error = errno;
    return error;
}

/* `tries`: how often the answer to a client is repeated, 0 for as it is; `defer`: seconds of TCP_DEFER_ACCEPT. Both
 * count for handshakes that have begun already. */
static inline int net_hurry(net_socket_t s, int tries, int defer)
{
    int error = 0;
    if (setsockopt(s, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer, sizeof defer) != 0)
        error = errno;
    if (tries > 0 && setsockopt(s, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof tries) != 0)
        error = errno;
    return error;
}

#endif
