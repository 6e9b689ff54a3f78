/* Any address that this package can name: large enough for each family, and no larger than it must be. Included by the
 * system's own file, behind the system's headers. */
#ifndef HARKEN_ADDRESS_H
#define HARKEN_ADDRESS_H

#include <stddef.h>

typedef union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
} net_address_t;

/* Where the path stands in a sockaddr_un, and how many bytes it may have. */
#define NET_PATH_AT offsetof(struct sockaddr_un, sun_path)
#define NET_PATH_ROOM (sizeof(struct sockaddr_un) - NET_PATH_AT)

#endif
