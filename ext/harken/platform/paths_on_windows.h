/* Entries of directories: Windows. The contract is in paths.h. Paths are UTF-8, as Python's os.fsencode() gives them. */
#ifndef HARKEN_PATHS_ON_WINDOWS_H
#define HARKEN_PATHS_ON_WINDOWS_H

#include <stdio.h>
#include <stdlib.h>

#define NET_ENOENT ERROR_FILE_NOT_FOUND
#define NET_EEXIST ERROR_ALREADY_EXISTS
#define NET_EACCES ERROR_ACCESS_DENIED
#define NET_EPERM ERROR_ACCESS_DENIED
#define NET_ENAMETOOLONG WSAENAMETOOLONG
#define NET_PATH_SEPARATOR '\\'
#define NET_A_SOCKETS_TAG 0x80000023UL /* IO_REPARSE_TAG_AF_UNIX */

typedef struct {
    int handle; /* directories are not opened here */
    const char *text;
} net_folder_t;

enum { NET_WIDE = 32768 };

static inline int net_path_error(void)
{
    DWORD error = GetLastError();
    if (error == ERROR_PATH_NOT_FOUND || error == ERROR_FILE_NOT_FOUND)
        return NET_ENOENT;
    return error == ERROR_FILE_EXISTS || error == ERROR_ALREADY_EXISTS ? NET_EEXIST : (int)error;
}

/* The caller frees it. NULL, with an error set, where there is no memory or the text is no path. */
static inline wchar_t *net_wide(const net_folder_t *folder, const char *name)
{
    wchar_t *wide = malloc(NET_WIDE * sizeof *wide);
    int size = 0;
    if (wide == NULL) {
        SetLastError(ERROR_NOT_ENOUGH_MEMORY);
        return NULL;
    }
    size = MultiByteToWideChar(CP_UTF8, 0, folder->text, -1, wide, NET_WIDE / 2);
    if (size > 0 && *name) {
        wide[size - 1] = L'\\';
        if (MultiByteToWideChar(CP_UTF8, 0, name, -1, wide + size, NET_WIDE / 2 - 1) == 0)
            size = 0;
    }
    if (size > 0)
        return wide;
    free(wide);
    return NULL;
}

static inline int net_folder_open(const char *text, net_folder_t *folder)
{
    DWORD kind = INVALID_FILE_ATTRIBUTES;
    wchar_t *wide;
    int error = 0;
    folder->handle = 0;
    folder->text = text;
    wide = net_wide(folder, "");
    if (wide)
        kind = GetFileAttributesW(wide);
    if (kind == INVALID_FILE_ATTRIBUTES)
        error = net_path_error();
    else if (!(kind & FILE_ATTRIBUTE_DIRECTORY))
        error = ERROR_DIRECTORY;
    free(wide);
    return error;
}

static inline void net_folder_close(net_folder_t *folder) { (void)folder; }

static inline int net_folder_remove(const net_folder_t *folder, const char *name)
{
    wchar_t *wide = net_wide(folder, name);
    int error = wide && RemoveDirectoryW(wide) ? 0 : net_path_error();
    free(wide);
    return error;
}

static inline int net_folder_private(const net_folder_t *folder, const char *name, const char *text, net_folder_t *made)
{
    wchar_t *wide = net_wide(folder, name);
    int error = wide && CreateDirectoryW(wide, NULL) ? 0 : net_path_error();
    free(wide);
    made->handle = 0;
    made->text = text;
    return error;
}

static inline int net_file_look(const net_folder_t *folder, const char *name, net_file_t *file)
{
    wchar_t *wide = net_wide(folder, name);
    BY_HANDLE_FILE_INFORMATION it;
    WIN32_FIND_DATAW entry;
    HANDLE found, seen;
    int error = 0;
    memset(file, 0, sizeof *file);
    found = wide ? CreateFileW(wide, 0, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                               FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS, NULL)
                 : INVALID_HANDLE_VALUE;
    if (found == INVALID_HANDLE_VALUE || !GetFileInformationByHandle(found, &it))
        error = net_path_error();
    else {
        seen = FindFirstFileW(wide, &entry); /* where the tag of a reparse point is told */
        file->kind = NET_SOMETHING;
        if (it.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT && seen != INVALID_HANDLE_VALUE &&
            entry.dwReserved0 == NET_A_SOCKETS_TAG)
            file->kind = NET_A_SOCKET;
        if (seen != INVALID_HANDLE_VALUE)
            FindClose(seen);
        file->device = it.dwVolumeSerialNumber;
        file->inode = ((unsigned long long)it.nFileIndexHigh << 32) | it.nFileIndexLow;
    }
    if (found != INVALID_HANDLE_VALUE)
        CloseHandle(found);
    free(wide);
    return error == NET_ENOENT ? 0 : error;
}

static inline int net_file_remove(const net_folder_t *folder, const char *name)
{
    wchar_t *wide = net_wide(folder, name);
    int error = wide && DeleteFileW(wide) ? 0 : net_path_error();
    free(wide);
    return error;
}

static inline int net_file_rename(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other,
                                  DWORD how)
{
    wchar_t *old = net_wide(from, name), *now = net_wide(to, other);
    int error = old && now && MoveFileExW(old, now, how) ? 0 : net_path_error();
    free(old);
    free(now);
    return error;
}

static inline int net_file_replace(const net_folder_t *from, const char *name, const net_folder_t *to,
                                   const char *other)
{
    return net_file_rename(from, name, to, other, MOVEFILE_REPLACE_EXISTING); /* without it a name that is there fails */
}

static inline int net_file_move(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other)
{
    return net_file_rename(from, name, to, other, 0);
}

static inline int net_exchange(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other)
{
    (void)from, (void)name, (void)to, (void)other;
    return NET_ENOTSUP;
}

static inline int net_file_way(const net_folder_t *folder, const char *name, char *path, size_t size)
{
    (void)folder, (void)name, (void)path, (void)size;
    return NET_ENAMETOOLONG;
}

static inline int net_file_of(net_socket_t s, unsigned long long *inode)
{
    (void)s;
    *inode = 0;
    return NET_ENOTSUP;
}

static inline int net_begins_with(net_socket_t s, int mode)
{
    (void)s, (void)mode;
    return 0;
}

static inline int net_file_give(const net_folder_t *folder, const char *name, const net_file_t *whose, long long uid,
                                long long gid, int mode, const char **step)
{
    (void)folder, (void)name, (void)whose;
    *step = "chmod";
    return uid >= 0 || gid >= 0 || mode >= 0 ? NET_ENOTSUP : 0; /* refused earlier: a socket has none here */
}

/* There are no datagram sockets of this family: a server has one connection more for it. */
static inline int net_file_knock(const net_folder_t *folder, const char *name, int *answer)
{
    char whole[NET_PATH_ROOM + 1];
    net_address_t to;
    net_length_t length = 0;
    u_long on = 1;
    SOCKET s;
    int size = snprintf(whole, sizeof whole, "%s\\%s", folder->text, name), error;
    *answer = NET_SOMEBODY;
    error = size < 0 || (size_t)size >= sizeof whole ? NET_ENAMETOOLONG : net_path_put(whole, &to, &length);
    if (error)
        return error;
    s = WSASocketW(AF_UNIX, SOCK_STREAM, 0, NULL, 0, WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT);
    if (s == INVALID_SOCKET)
        return WSAGetLastError();
    ioctlsocket(s, (long)FIONBIO, &on); /* a queue that is full is somebody's */
    if (connect(s, &to.any, (int)length) != 0) {
        error = WSAGetLastError();
        if (error == WSAECONNREFUSED)
            *answer = NET_NOBODY;
        else if (error == WSAEACCES)
            *answer = NET_FORBIDDEN;
    }
    closesocket(s);
    return 0;
}

static inline int net_file_hold(const net_folder_t *folder, const char *name)
{
    (void)folder, (void)name;
    return -1;
}

static inline long net_file_links(int held)
{
    (void)held;
    return -1;
}

static inline void net_file_release(int held) { (void)held; }

#endif
