/* Of Python's C interface: what Cython would look up, or copy, on every call, and what differs between versions. */
#ifndef HARKEN_OBJECTS_H
#define HARKEN_OBJECTS_H

#include <Python.h>
#include <string.h>

/* An object of a class of ours, as its __new__ makes it: __init__ is not called. */
static inline PyObject *object_of(PyTypeObject *kind)
{
    PyObject *none_given = PyTuple_New(0), *made = NULL;
    if (none_given) {
        made = kind->tp_new(kind, none_given, NULL);
        Py_DECREF(none_given);
    }
    return made;
}

/* A copy of an object of a class of ours that the garbage collector does not track, and that has no reference but one, to
 * None, in its fields: what __new__ would make, in a third of the time. */
static inline PyObject *object_like(PyObject *model)
{
    PyTypeObject *kind = Py_TYPE(model);
    PyObject *made = PyObject_Malloc((size_t)kind->tp_basicsize);
    if (made == NULL)
        return PyErr_NoMemory();
    memcpy((char *)made + sizeof(PyObject), (char *)model + sizeof(PyObject),
           (size_t)kind->tp_basicsize - sizeof(PyObject));
    Py_INCREF(Py_None);
    return PyObject_Init(made, kind);
}

/* An object of a subclass of tuple, with the items of a list. tuple.__new__ would make an exact tuple first. */
static inline PyObject *tuple_of(PyTypeObject *kind, PyObject *items)
{
    Py_ssize_t n, count = PyList_GET_SIZE(items);
    PyObject *made = PyType_GenericAlloc(kind, count);
    if (made == NULL)
        return NULL;
#if PY_VERSION_HEX >= 0x030E0000
    ((PyTupleObject *)made)->ob_hash = -1; /* not known yet */
#endif
    for (n = 0; n < count; n++)
        PyTuple_SET_ITEM(made, n, Py_NewRef(PyList_GET_ITEM(items, n)));
    return made;
}

/* Cython keeps a table of its modules, one a module, by interpreter, and takes nothing out when an interpreter ends: a
 * Python that is ended and started again in one process has the same number, and would find each module imported already.
 * So `function` is called when the interpreter ends, after the last of its objects, and takes the module out. */
#define NET_FORGET_THIS_MODULE() ((void)__Pyx_State_RemoveModule(&__pyx_moduledef))
static inline void interpreter_ends(PyObject *capsule)
{
    void (*function)(void) = (void (*)(void))PyCapsule_GetPointer(capsule, NULL);
    if (function)
        function();
}
static inline int when_interpreter_ends(PyObject *name, void (*function)(void))
{
    PyObject *own = PyInterpreterState_GetDict(PyInterpreterState_Get()); /* borrowed */
    PyObject *capsule = PyCapsule_New((void *)function, NULL, interpreter_ends);
    int failed = own == NULL || capsule == NULL || PyDict_SetItem(own, name, capsule) < 0;
    Py_XDECREF(capsule);
    if (failed && !PyErr_Occurred())
        PyErr_NoMemory();
    return failed ? -1 : 0;
}

/* True from when only the main thread may still run Python. */
static inline int python_is_ending(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

#endif
