/* What CPython's headers ask of pyconfig.h, answered by the compiler: for any system that it compiles for, without that
   system's Python. Enough to compile an extension; the real one of Windows is for MSVC and names a .lib to link with. */
#ifndef Py_CONFIG_H
#define Py_CONFIG_H

#define WITH_THREAD 1
#define WITH_DOC_STRINGS 1
#define PLATLIBDIR "lib"

#define SIZEOF_SHORT __SIZEOF_SHORT__
#define SIZEOF_INT __SIZEOF_INT__
#define SIZEOF_LONG __SIZEOF_LONG__
#define SIZEOF_LONG_LONG __SIZEOF_LONG_LONG__
#define SIZEOF_FLOAT __SIZEOF_FLOAT__
#define SIZEOF_DOUBLE __SIZEOF_DOUBLE__
#define SIZEOF_LONG_DOUBLE __SIZEOF_LONG_DOUBLE__
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#define SIZEOF_UINTPTR_T __SIZEOF_POINTER__
#define SIZEOF_WCHAR_T __SIZEOF_WCHAR_T__
#define SIZEOF_TIME_T 8
#define SIZEOF_FPOS_T 8
#define SIZEOF__BOOL 1
#define ALIGNOF_LONG __SIZEOF_LONG__
#define ALIGNOF_SIZE_T __SIZEOF_SIZE_T__
#define ALIGNOF_MAX_ALIGN_T 8

#define HAVE_LONG_LONG 1
#define HAVE_SSIZE_T 1
#define HAVE_INTPTR_T 1
#define HAVE_UINTPTR_T 1
#define HAVE_STDDEF_H 1
#define HAVE_STDINT_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_WCHAR_H 1
#define STDC_HEADERS 1

#ifdef _WIN32
#define MS_WIN32
#define MS_WINDOWS
#define NT_THREADS
#ifdef _WIN64
#define MS_WIN64
#endif
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL
#define HAVE_THREAD_LOCAL 1
#define HAVE_USABLE_WCHAR_T 1
#define SIZEOF_OFF_T 4
#define SIZEOF_PID_T __SIZEOF_POINTER__
#else
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#define HAVE_PTHREAD_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_UNISTD_H 1
#define PTHREAD_KEY_T_IS_COMPATIBLE_WITH_INT 1
#define SIZEOF_OFF_T 8
#define SIZEOF_PID_T 4
#define SIZEOF_PTHREAD_T __SIZEOF_POINTER__
#endif

#endif
