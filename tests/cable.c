/* A network cable with a delay and a loss, for kernels without netem: carries packets between two interfaces of this
 * network namespace.
 *
 *     cable INTERFACE INTERFACE MILLISECONDS PERCENT SEED
 *
 * Both count for each direction. Only TCP is lost, never the packets by which neighbours find each other. Writes "ready"
 * when it carries, and ends with its standard input; then it writes how many packets it carried and lost. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 16, LARGEST = 1 << 16, BATCH = 256 };

typedef struct {
    long long due; /* nanoseconds */
    int size;
    unsigned char *data;
} packet_t;

typedef struct {
    packet_t *packets;
    unsigned first, end;
} queue_t;

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* What an interface leaves to its hardware is done by nobody here: checksums, and cutting data into segments. */
static void do_without_offload(int s, const char *name)
{
    static const unsigned switches[] = {ETHTOOL_STXCSUM, ETHTOOL_SSG, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO};
    size_t n;
    for (n = 0; n < sizeof switches / sizeof *switches; n++) {
        struct ethtool_value off = {switches[n], 0};
        struct ifreq request;
        memset(&request, 0, sizeof request);
        strncpy(request.ifr_name, name, IFNAMSIZ - 1);
        request.ifr_data = (void *)&off;
        (void)ioctl(s, SIOCETHTOOL, &request); /* there is nothing to switch off */
    }
}

static int end_of(const char *name)
{
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL)), room = 64 << 20, on = 1;
    struct sockaddr_ll address;
    if (s < 0) {
        perror("socket");
        exit(1);
    }
    do_without_offload(s, name);
    memset(&address, 0, sizeof address);
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = (int)if_nametoindex(name);
    if (address.sll_ifindex == 0 || bind(s, (struct sockaddr *)&address, sizeof address) != 0) {
        perror(name);
        exit(1);
    }
    struct packet_mreq all = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    setsockopt(s, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    setsockopt(s, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all);
    return s;
}

static int may_be_lost(const unsigned char *frame, int size)
{
    int type = size > 54 ? frame[12] << 8 | frame[13] : 0;
    return (type == ETH_P_IP && frame[23] == IPPROTO_TCP) || (type == ETH_P_IPV6 && frame[20] == IPPROTO_TCP);
}

int main(int count, char **words)
{
    static unsigned char frame[LARGEST];
    queue_t queues[2]; /* queues[n]: what came in at end n */
    unsigned long long carried = 0, lost = 0, dropped = 0, expired;
    int ends[2], timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), n;
    if (count != 6)
        return 2;
    long long delay = (long long)(atof(words[3]) * 1e6);
    double loss = atof(words[4]) / 100;
    srand48(atol(words[5]));
    for (n = 0; n < 2; n++) {
        ends[n] = end_of(words[1 + n]);
        queues[n].packets = calloc(ROOM, sizeof(packet_t));
        queues[n].first = queues[n].end = 0;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        long long time = now(), next = 0;
        for (n = 0; n < 2; n++) {
            queue_t *queue = &queues[n];
            for (; queue->first != queue->end && queue->packets[queue->first % ROOM].due <= time; queue->first++) {
                packet_t *packet = &queue->packets[queue->first % ROOM];
                if (send(ends[1 - n], packet->data, (size_t)packet->size, 0) < 0)
                    dropped++;
                else
                    carried++;
                free(packet->data);
            }
            if (queue->first != queue->end && (!next || queue->packets[queue->first % ROOM].due < next))
                next = queue->packets[queue->first % ROOM].due;
        }
        struct itimerspec alarm = {{0, 0}, {next / 1000000000, next % 1000000000}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL);
        struct pollfd waiting[] = {{ends[0], POLLIN, 0}, {ends[1], POLLIN, 0}, {timer, POLLIN, 0}, {0, POLLIN, 0}};
        if (poll(waiting, 4, -1) < 0 && errno != EINTR)
            break;
        if (waiting[3].revents)
            break;
        if (waiting[2].revents && read(timer, &expired, sizeof expired) < 0 && errno != EAGAIN)
            break;
        time = now();
        for (n = 0; n < 2; n++) {
            queue_t *queue = &queues[n];
            int size, k;
            for (k = 0; waiting[n].revents && k < BATCH && (size = (int)recv(ends[n], frame, LARGEST, 0)) > 0; k++) {
                packet_t *packet = &queue->packets[queue->end % ROOM];
                if (may_be_lost(frame, size) && drand48() < loss) {
                    lost++;
                    continue;
                }
                if (queue->end - queue->first >= ROOM || (packet->data = malloc((size_t)size)) == NULL) {
                    dropped++;
                    continue;
                }
                memcpy(packet->data, frame, (size_t)size);
                packet->size = size;
                packet->due = time + delay;
                queue->end++;
            }
        }
    }
    printf("%llu %llu %llu\n", carried, lost, dropped);
    return 0;
}
