/* Counts what is left of Winsock when Python has ended: handed to Py_AtExit before harken is imported, it runs after
 * harken's own cleanup. A DLL, because by then no Python code can run. */
#include <winsock2.h>
#include <stdio.h>

__declspec(dllexport) void report(void)
{
    int starts = 0;
    while (WSACleanup() == 0)
        ++starts;
    printf("starts left: %d\n", starts);
    fflush(stdout);
}
