/* Entries of directories, in what all POSIX systems do alike. The contract is in paths.h; the system's own file includes
 * this one. */
#ifndef HARKEN_PATHS_ON_POSIX_H
#define HARKEN_PATHS_ON_POSIX_H

#include <stdio.h>
#include <sys/stat.h>

#define NET_ENOENT ENOENT
#define NET_EEXIST EEXIST
#define NET_EACCES EACCES
#define NET_EPERM EPERM
#define NET_ENAMETOOLONG ENAMETOOLONG
#define NET_PATH_SEPARATOR '/'

typedef struct {
    int handle;
    const char *text; /* the path, whose owner is the caller */
} net_folder_t;

#if defined(O_PATH)
#define NET_TO_LOOK_UP O_PATH /* it need not be readable */
#elif defined(O_SEARCH)
#define NET_TO_LOOK_UP O_SEARCH
#else
#define NET_TO_LOOK_UP O_RDONLY
#endif

static inline int net_folder_open(const char *text, net_folder_t *folder)
{
    folder->text = text;
    folder->handle = open(text, NET_TO_LOOK_UP | O_DIRECTORY | O_CLOEXEC);
    return folder->handle < 0 ? errno : 0;
}

static inline void net_folder_close(net_folder_t *folder)
{
    int handle = folder->handle;
    folder->handle = -1; /* first: a fork that comes between finds no number that is another's by then */
    if (handle >= 0)
        close(handle);
}

static inline int net_folder_remove(const net_folder_t *folder, const char *name)
{
    return unlinkat(folder->handle, name, AT_REMOVEDIR) ? errno : 0;
}

/* Whoever owns the folder can put another directory of this name in its place before it is opened, but none that is
 * ours and closed to others. From then on nobody else can make, rename or remove anything in what was opened. */
static inline int net_folder_private(const net_folder_t *folder, const char *name, const char *text, net_folder_t *made)
{
    struct stat it;
    made->handle = -1;
    made->text = text;
    if (mkdirat(folder->handle, name, 0700))
        return errno;
    made->handle = openat(folder->handle, name, NET_TO_LOOK_UP | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (made->handle >= 0 && fstat(made->handle, &it) == 0 && it.st_uid == geteuid() && !(it.st_mode & 077))
        return 0;
    int error = made->handle < 0 ? errno : EPERM;
    net_folder_close(made);
    net_folder_remove(folder, name);
    return error;
}

static inline void net_file_fill(net_file_t *file, const struct stat *it)
{
    file->kind = S_ISSOCK(it->st_mode) ? NET_A_SOCKET : NET_SOMETHING;
    file->mode = (int)(it->st_mode & 01777);
    file->device = (unsigned long long)it->st_dev;
    file->inode = (unsigned long long)it->st_ino;
}

static inline int net_file_look(const net_folder_t *folder, const char *name, net_file_t *file)
{
    struct stat it;
    memset(file, 0, sizeof *file);
    if (fstatat(folder->handle, name, &it, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0 : errno;
    net_file_fill(file, &it);
    return 0;
}

static inline int net_file_remove(const net_folder_t *folder, const char *name)
{
    return unlinkat(folder->handle, name, 0) ? errno : 0;
}

static inline int net_file_replace(const net_folder_t *from, const char *name, const net_folder_t *to,
                                   const char *other)
{
    return renameat(from->handle, name, to->handle, other) ? errno : 0;
}

/* In the system's own file. */
static inline int net_rename(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other,
                             int exchange);

static inline int net_exchange(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other)
{
    return net_rename(from, name, to, other, 1);
}

static inline int net_file_move(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other)
{
    net_file_t there;
    int error = net_rename(from, name, to, other, 0);
    if (error != NET_ENOTSUP)
        return error;
    if (linkat(from->handle, name, to->handle, other, 0) == 0)
        return net_file_remove(from, name);
    if (errno == EEXIST || errno == ENOENT)
        return errno;
    /* No second name may be had, as of another user's file: what is left is rename(), which asks nothing. */
    error = net_file_look(to, other, &there);
    if (error == 0 && there.kind != NET_NOTHING)
        error = EEXIST;
    return error ? error : net_file_replace(from, name, to, other);
}

static inline int net_begins_with(net_socket_t s, int mode)
{
    return fchmod(s, (mode_t)mode) == 0; /* Linux; others have no mode on sockets, and say EINVAL */
}

/* Owner first: the mode opens it for the group that it is meant for. -1 leaves a thing as it is. Without `whose` the
 * folder must be one where nobody else can put anything. */
static inline int net_file_give(const net_folder_t *folder, const char *name, const net_file_t *whose, long long uid,
                                long long gid, int mode, const char **step)
{
    *step = "chown";
#ifdef O_PATH
    if (whose) {
        char path[40];
        net_file_t file;
        struct stat it;
        int error = 0, held = openat(folder->handle, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (held < 0 || fstat(held, &it))
            error = errno;
        else {
            net_file_fill(&file, &it);
            if (!(file.kind == NET_A_SOCKET && file.inode == whose->inode && file.device == whose->device))
                error = EEXIST;
        }
        if (error == 0 && (uid >= 0 || gid >= 0) && fchownat(held, "", (uid_t)uid, (gid_t)gid, AT_EMPTY_PATH))
            error = errno;
        else if (error == 0 && mode >= 0) {
            *step = "chmod";
            snprintf(path, sizeof path, "/proc/self/fd/%d", held);
            error = chmod(path, (mode_t)mode) ? errno : 0;
        }
        if (held >= 0)
            close(held);
        return error;
    }
#else
    (void)whose;
#endif
    if ((uid >= 0 || gid >= 0) && fchownat(folder->handle, name, (uid_t)uid, (gid_t)gid, AT_SYMLINK_NOFOLLOW))
        return errno;
    *step = "chmod";
    return mode >= 0 && fchmodat(folder->handle, name, (mode_t)mode, 0) ? errno : 0;
}

/* A datagram socket that connects leaves no trace: the kernel refuses its type where a stream socket of any process has
 * the path (EPROTOTYPE), also one whose queue is full, or that does not listen yet, or that is in another container. */
static inline int net_file_knock(const net_folder_t *folder, const char *name, int *answer)
{
    char path[64 + NAME_MAX];
    net_address_t to;
    net_length_t length = 0;
    int error = 0, s, held = -1;
    *answer = NET_SOMEBODY;
#ifdef O_PATH
    held = openat(folder->handle, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (held < 0)
        return errno;
    snprintf(path, sizeof path, "/proc/self/fd/%d", held);
    if (access(path, F_OK))
        path[0] = 0;
#else
    path[0] = 0;
#endif
    if (path[0])
        error = net_path_put(path, &to, &length);
    else {
        char whole[NET_PATH_ROOM + 1];
        int size = snprintf(whole, sizeof whole, "%s/%s", folder->text, name);
        error = size < 0 || (size_t)size >= sizeof whole ? ENAMETOOLONG : net_path_put(whole, &to, &length);
    }
    s = error ? -1 : socket(AF_UNIX, SOCK_DGRAM | NET_SOCK_CLOEXEC, 0);
    if (error == 0 && s < 0)
        error = errno;
    if (error == 0 && connect(s, &to.any, length)) {
        if (errno == ECONNREFUSED)
            *answer = NET_NOBODY;
        else if (errno == EACCES || errno == EPERM)
            *answer = NET_FORBIDDEN;
        else if (errno == ENOENT)
            error = ENOENT;
    }
    if (s >= 0)
        close(s);
    if (held >= 0)
        close(held);
    return error;
}

static inline int net_file_hold(const net_folder_t *folder, const char *name)
{
#ifdef O_PATH
    return openat(folder->handle, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
#else
    (void)folder, (void)name;
    return -1;
#endif
}

/* -1: it cannot be told. */
static inline long net_file_links(int held)
{
    struct stat it;
    return held < 0 || fstat(held, &it) ? -1 : (long)it.st_nlink;
}

static inline void net_file_release(int held)
{
    if (held >= 0)
        close(held);
}

#endif
