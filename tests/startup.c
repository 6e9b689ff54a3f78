/* The lifecycle beside a Winsock that misbehaves. Compiled with -DWSAStartup=fake_start -DWSACleanup=fake_cleanup, so
 * that platform/on_windows.h calls the functions below. Prints "ok", or the line that was not as it should be. */
#if __has_include("platform/net.h") /* without it, somebody compiles all helpers of the tests, and this is none */
#include "platform/net.h"

#include <stdio.h>

static int answer;
static WORD version;
static int starts, cleanups;

int WSAAPI fake_start(WORD asked, LPWSADATA data)
{
    if (asked != MAKEWORD(2, 2))
        return WSAEINVAL;
    if (answer != 0)
        return answer;
    ++starts;
    data->wVersion = version;
    return 0;
}

int WSAAPI fake_cleanup(void)
{
    ++cleanups;
    return 0;
}

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1; \
        } \
    } while (0)

int main(void)
{
    int first = 99;

    answer = WSASYSNOTREADY; /* a failed start is told, and has no cleanup */
    CHECK(net_startup(&first) == WSASYSNOTREADY && first == 0);
    CHECK(starts == 0 && cleanups == 0);

    answer = 0;
    version = MAKEWORD(1, 1); /* an old library is started, refused, and ended */
    first = 99;
    CHECK(net_startup(&first) == WSAVERNOTSUPPORTED && first == 0);
    CHECK(starts == 1 && cleanups == 1);

    version = MAKEWORD(2, 2); /* the next try may succeed, once */
    CHECK(net_startup(&first) == 0 && first == 1);
    CHECK(net_startup(&first) == 0 && first == 0);
    CHECK(net_startup(&first) == 0 && first == 0);
    CHECK(starts == 2 && cleanups == 1);

    net_cleanup();
    CHECK(cleanups == 2);
    net_cleanup(); /* what is ended is not ended again */
    CHECK(cleanups == 2);

    CHECK(net_startup(&first) == 0 && first == 1); /* by a Python that is started again */
    CHECK(net_startup(&first) == 0 && first == 0);
    CHECK(starts == 3 && cleanups == 2);
    net_cleanup();
    CHECK(cleanups == 3);
    puts("ok");
    return 0;
}
#endif
