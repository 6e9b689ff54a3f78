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

/* Cython keeps a table of its modules by interpreter, and takes nothing out when an interpreter ends. A Python that is
 * ended and started again in one process (Py_FinalizeEx, Py_Initialize) counts its interpreters from 0 again, and would
 * find each module imported already. It must not be taken out when the interpreter ends: objects that outlive all
 * dictionaries, in a cycle with an audit hook for one, look for their module when they are freed. So it is done by the
 * next import: an interpreter that has not imported the module, and finds it in the table, finds one of before.
 * What each interpreter has imported, it notes in its own dictionary. */
typedef PyObject *(*net_find_t)(void *);
typedef int (*net_remove_t)(void *);
static struct {
    PyObject *(*create)(PyObject *spec, PyModuleDef *def);
    net_find_t find;
    net_remove_t remove;
} net_module; /* each module includes this file, and has its own */

/* 1 when this interpreter had noted the import before, 0 when it has only now, -1 for an error. */
static inline int note_import(PyModuleDef *def)
{
    PyObject *own = PyInterpreterState_GetDict(PyInterpreterState_Get()); /* borrowed */
    PyObject *name = PyUnicode_FromFormat("harken.%s", def->m_name);
    int noted = own == NULL || name == NULL ? -1 : PyDict_Contains(own, name);
    if (noted == 0 && PyDict_SetItem(own, name, Py_None) < 0)
        noted = -1;
    Py_XDECREF(name);
    if (noted < 0 && !PyErr_Occurred())
        PyErr_NoMemory();
    return noted;
}

static inline PyObject *create_module(PyObject *spec, PyModuleDef *def)
{
    int noted = note_import(def);
    if (noted < 0)
        return NULL;
    if (noted == 0 && net_module.find(def) != NULL)
        net_module.remove(def);
    return net_module.create(spec, def);
}

static inline int may_be_imported_again(
    PyModuleDef *def, PyModuleDef_Slot *slots, net_find_t find, net_remove_t remove)
{
    PyModuleDef_Slot *slot;
    net_module.find = find;
    net_module.remove = remove;
    for (slot = slots; slot->slot != 0; slot++)
        if (slot->slot == Py_mod_create && slot->value != (void *)create_module) {
            net_module.create = (PyObject *(*)(PyObject *, PyModuleDef *))slot->value;
            slot->value = (void *)create_module;
        }
    return note_import(def);
}
#define NET_MAY_BE_IMPORTED_AGAIN() \
    may_be_imported_again(&__pyx_moduledef, __pyx_moduledef_slots, __Pyx_State_FindModule, __Pyx_State_RemoveModule)

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
