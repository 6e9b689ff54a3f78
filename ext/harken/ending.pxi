# Included by every module, as its last line: Python may be ended and started again in one process (Py_FinalizeEx,
# Py_Initialize), and finds no module of the interpreter before. See platform/objects.h.

cdef void ended() noexcept:
    c.forget_this_module()


c.when_interpreter_ends(__name__, ended)
