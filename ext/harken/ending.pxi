# Included by every module, as its last line: Python may be ended and started again in one process (Py_FinalizeEx,
# Py_Initialize), and must not find the module of the interpreter before. See platform/objects.h.

c.may_be_imported_again()
