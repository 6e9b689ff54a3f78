/* Entries of directories on Linux. The contract is in paths.h. */
#ifndef HARKEN_PATHS_ON_LINUX_H
#define HARKEN_PATHS_ON_LINUX_H

#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/syscall.h>

#include "platform/paths_on_posix.h"

#ifndef SYS_renameat2 /* Linux 3.15; the headers may be older */
#if defined(__x86_64__) && !defined(__ILP32__)
#define SYS_renameat2 316
#elif defined(__i386__)
#define SYS_renameat2 353
#elif defined(__arm__)
#define SYS_renameat2 382
#elif defined(__powerpc__)
#define SYS_renameat2 357
#elif defined(__s390x__)
#define SYS_renameat2 347
#else
#define SYS_renameat2 276
#endif
#endif

/* rename() with a condition. NET_ENOTSUP where the system or the file system does not have it. */
static inline int net_rename(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other,
                             int exchange)
{
    if (syscall(SYS_renameat2, from->handle, name, to->handle, other, exchange ? 2u : 1u) == 0)
        return 0;
    return errno == EINVAL || errno == ENOSYS || errno == ENOTSUP || errno == EOPNOTSUPP ? NET_ENOTSUP : errno;
}

/* Through /proc a path is as short as a number. */
static inline int net_file_way(const net_folder_t *folder, const char *name, char *path, size_t size)
{
    int length = snprintf(path, size, "/proc/self/fd/%d", folder->handle);
    if (access(path, F_OK))
        return ENAMETOOLONG;
    if (*name)
        length = snprintf(path, size, "/proc/self/fd/%d/%s", folder->handle, name);
    return length < 0 || (size_t)length >= size ? ENAMETOOLONG : 0;
}

/* The inode's number as stat() has it, of which the kernel tells the lower half; 0 while it is not bound to a path. */
static inline int net_file_of(net_socket_t s, unsigned long long *inode)
{
    *inode = 0;
    struct {
        struct nlmsghdr head;
        struct unix_diag_req body;
    } asked;
    union {
        struct nlmsghdr head;
        char bytes[512];
    } told;
    const char *at, *end;
    struct stat it;
    ssize_t size;
    int error = 0, link;
    if (fstat(s, &it))
        return errno;
    link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (link < 0)
        return errno;
    memset(&asked, 0, sizeof asked);
    asked.head.nlmsg_len = sizeof asked;
    asked.head.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    asked.head.nlmsg_flags = NLM_F_REQUEST;
    asked.body.sdiag_family = AF_UNIX;
    asked.body.udiag_states = 0xFFFFFFFF;
    asked.body.udiag_ino = (unsigned)it.st_ino;
    asked.body.udiag_show = UDIAG_SHOW_VFS;
    asked.body.udiag_cookie[0] = asked.body.udiag_cookie[1] = 0xFFFFFFFF;
    if (send(link, &asked, sizeof asked, MSG_NOSIGNAL) < 0)
        error = errno;
    /* The kernel has answered by then; what stands in for one may not. */
    size = error ? 0 : recv(link, &told, sizeof told, MSG_DONTWAIT);
    if (error == 0 && size < 0)
        error = errno;
    close(link);
    if (error)
        return error;
    if ((size_t)size < NLMSG_LENGTH(sizeof(struct unix_diag_msg)) || told.head.nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return EOPNOTSUPP; /* an error, as from a kernel without unix_diag */
    end = told.bytes + (size < (ssize_t)told.head.nlmsg_len ? size : (ssize_t)told.head.nlmsg_len);
    for (at = told.bytes + NLMSG_LENGTH(sizeof(struct unix_diag_msg)); end - at >= (ssize_t)sizeof(struct nlattr);) {
        struct nlattr one;
        struct unix_diag_vfs vfs;
        memcpy(&one, at, sizeof one);
        if (one.nla_len < sizeof one || one.nla_len > end - at)
            break;
        if (one.nla_type == UNIX_DIAG_VFS && one.nla_len >= sizeof one + sizeof vfs) {
            memcpy(&vfs, at + sizeof one, sizeof vfs);
            *inode = vfs.udiag_vfs_ino;
        }
        at += (one.nla_len + 3) & ~3;
    }
    return 0;
}

#endif
