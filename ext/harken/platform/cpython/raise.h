/* From a platform's error number to the Python exception that CPython's own socket module raises for it. It is in this
 * folder because it needs Python.h; nothing outside the folder does. */
#ifndef HARKEN_RAISE_H
#define HARKEN_RAISE_H

#include <Python.h>

#ifdef _WIN32
/* Sets winerror, and with it errno and the class, as CPython's own socket module does. */
static inline int net_raise(int number)
{
    PyErr_SetExcFromWindowsErr(PyExc_OSError, number);
    return -1;
}
#else
#include <errno.h>
static inline int net_raise(int number)
{
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}
#endif

#endif
