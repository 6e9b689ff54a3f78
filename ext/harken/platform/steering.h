/* Which of the sockets of one port gets a connection: Linux lets a program of classic BPF choose among the members of a
 * SO_REUSEPORT group. It runs for the first packet of each connection, and answers with a number: members count from 0
 * in the order in which they began to listen, and when one is closed, the last one gets its number. A number that
 * nobody has falls back to the kernel's own choice, among all. No privilege is needed for any of this.
 *
 *   net_steer        attach a program to the group of this listener: it replaces the one before
 *   net_place_of     which place of the table a client with this port gets: the same arithmetic as the program's
 *   net_keep_filter  no socket options of this listener change programs any more (detaching stays possible)
 *   net_only_near    a listener drops the first packets of connections that come from other machines' TTL of 64 or 128;
 *                    handshakes that have begun go on. For a drain, and without privilege, unlike a packet filter.
 *                    Connections have the setting from their listener: whoever accepts one ends it there.
 *   net_hurry        handshakes that are open: no waiting for data (TCP_DEFER_ACCEPT), one repetition (TCP_SYNCNT)
 *
 * Elsewhere NET_STEERS is 0, and the functions answer NET_ENOTSUP.
 */
#ifndef HARKEN_STEERING_H
#define HARKEN_STEERING_H

#include "platform/net.h"

#include <stdint.h>
#include <stdlib.h>

/* Odd, and large enough for the low bits of the port to reach the bits that are used; no client that counts its ports
 * in steps of 2 or 4 is always given the same place. */
#define NET_SPREAD 40503u
#define NET_SPREAD_SHIFT 7

static inline size_t net_place_of(unsigned port, size_t count)
{
    return count ? (size_t)((uint32_t)(port * NET_SPREAD) >> NET_SPREAD_SHIFT) % count : 0;
}

#if defined(__linux__)
#include "platform/steering_on_linux.h"
#else
#include "platform/steering_not_linux.h"
#endif

#endif
