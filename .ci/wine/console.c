/* console.exe COMMAND...: runs the command on a console of its own, which takes no window and so no display.

   Without a console a process under Wine can send no CTRL_C_EVENT, and a terminal is not always there to be one.
   Of an exit code Wine hands the low eight bits to the system outside, which would make pytest's 5, "no tests", of an
   access violation, 0xC0000005. So what does not fit is told here. */
#include <stdio.h>
#include <windows.h>

int wmain(void)
{
    static const DWORD standard[] = {STD_INPUT_HANDLE, STD_OUTPUT_HANDLE, STD_ERROR_HANDLE};
    wchar_t *command = GetCommandLineW();
    wchar_t end = *command == L'"' ? *command++ : L' ';
    STARTUPINFOW startup = {.cb = sizeof startup, .dwFlags = STARTF_USESTDHANDLES};
    PROCESS_INFORMATION process;
    DWORD code;

    /* The command is the rest of the command line, as it stands, after the name of this program. */
    while (*command && *command != end)
        command++;
    if (*command)
        command++;
    while (*command == L' ')
        command++;

    for (int i = 0; i < 3; i++)
        SetHandleInformation(GetStdHandle(standard[i]), HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT);
    startup.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    startup.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    startup.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    if (!CreateProcessW(NULL, command, NULL, NULL, TRUE, CREATE_NO_WINDOW, NULL, NULL, &startup, &process)) {
        fprintf(stderr, "wine: cannot run %ls: error %lu\n", command, GetLastError());
        return 127;
    }
    WaitForSingleObject(process.hProcess, INFINITE);
    GetExitCodeProcess(process.hProcess, &code);
    if (code == STATUS_CONTROL_C_EXIT)
        return 130;
    if (code > 255) {
        fprintf(stderr, "wine: the exit code was 0x%08lX\n", code);
        return 1;
    }
    return (int)code;
}
