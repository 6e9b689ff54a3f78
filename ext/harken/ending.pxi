# Included by every module, as its last line. A process may end Python and start it again (Py_FinalizeEx,
# Py_Initialize): the new interpreter must not find modules of the old one. See platform/cpython/objects.h.

c.may_be_imported_again()
