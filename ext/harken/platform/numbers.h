/* The numbers that the steps need, by the names that they have on every system. */
#ifndef HARKEN_NUMBERS_H
#define HARKEN_NUMBERS_H

typedef struct {
    const char *name;
    int number;
} net_number_t;

#define NET_NUMBER(name) {#name, name}

static const net_number_t net_numbers[] = {
    NET_NUMBER(AF_UNSPEC),
    NET_NUMBER(AF_INET),
    NET_NUMBER(AF_INET6),
    NET_NUMBER(AF_UNIX),
    {"AF_VSOCK", NET_AF_VSOCK}, /* -1 where the system lacks it, like MPTCP */
    NET_NUMBER(SOCK_STREAM),
    NET_NUMBER(SOCK_DGRAM),
    NET_NUMBER(IPPROTO_IP),
    NET_NUMBER(IPPROTO_IPV6),
    NET_NUMBER(IPPROTO_TCP),
    NET_NUMBER(IPPROTO_UDP),
    {"IPPROTO_MPTCP", NET_IPPROTO_MPTCP},
    NET_NUMBER(AI_PASSIVE),
    NET_NUMBER(AI_CANONNAME),
    NET_NUMBER(AI_NUMERICHOST),
    NET_NUMBER(AI_NUMERICSERV),
    NET_NUMBER(AI_ADDRCONFIG),
    NET_NUMBER(AI_V4MAPPED),
    NET_NUMBER(AI_ALL),
    NET_NUMBER(SOMAXCONN),
    NET_NUMBER(SHUT_RD),
    NET_NUMBER(SHUT_WR),
    NET_NUMBER(SHUT_RDWR),
    NET_NUMBER(SOL_SOCKET),
    NET_NUMBER(SO_ACCEPTCONN),
    NET_NUMBER(SO_ERROR),
    NET_NUMBER(SO_KEEPALIVE),
    NET_NUMBER(SO_LINGER),
    NET_NUMBER(SO_RCVBUF),
    NET_NUMBER(SO_REUSEADDR),
    NET_NUMBER(SO_SNDBUF),
    NET_NUMBER(SO_TYPE),
    NET_NUMBER(IPV6_V6ONLY),
    NET_NUMBER(TCP_NODELAY),
    NET_NUMBER(MSG_PEEK),
    NET_NUMBER(MSG_WAITALL),
    {"UNIX_PATH_ROOM", (int)NET_PATH_ROOM}, /* bytes for a unix socket's path, with the NUL that ends it */
    {"BUFFER_FACTOR", NET_BUFFER_FACTOR},
    {"FASTOPEN_MOST", NET_FASTOPEN_MOST},
    {NULL, 0},
};

#endif
