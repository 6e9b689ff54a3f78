/* Starts Python, runs a program, and ends Python: again and again, in one process, as programs that embed it do. */
#include <Python.h>

int main(int argc, char **argv)
{
    int n, failed = argc != 2;
    for (n = 0; n < 4 && !failed; n++) {
        Py_Initialize();
        failed = PyRun_SimpleString(argv[1]) != 0;
        failed |= Py_FinalizeEx() != 0;
    }
    return failed;
}
