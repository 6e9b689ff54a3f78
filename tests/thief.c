/* Stands for another process that shares a listener: while thief_works is set, just before every accept4() of this
 * process the listener is made blocking, and the connection that was seen is accepted. While thief_delays is set, each
 * accept4() comes back so many microseconds later. Preloaded by test_flipped.py, for Linux and glibc. */
#if __has_include(<dlfcn.h>)
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int thief_works, thief_delays;

int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*real)(int, struct sockaddr *, socklen_t *, int);
    if (real == NULL)
        real = (int (*)(int, struct sockaddr *, socklen_t *, int))dlsym(RTLD_NEXT, "accept4");
    if (thief_works) {
        int on = 1, stolen;
        ioctl(listener, FIONBIO, &on);
        while ((stolen = real(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
            close(stolen);
        on = 0;
        ioctl(listener, FIONBIO, &on);
    }
    if (thief_delays) {
        int accepted = real(listener, address, length, flags);
        usleep((useconds_t)thief_delays);
        return accepted;
    }
    return real(listener, address, length, flags);
}
#endif
