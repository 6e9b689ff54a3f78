/* Entries of directories on macOS. The contract is in paths.h. */
#ifndef HARKEN_PATHS_ON_DARWIN_H
#define HARKEN_PATHS_ON_DARWIN_H

#include "platform/paths_on_posix.h"
#include "platform/paths_not_linux.h"

/* rename() with a condition. NET_ENOTSUP where the system or the file system does not have it. */
static inline int net_rename(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other,
                             int exchange)
{
    if (renameatx_np(from->handle, name, to->handle, other, exchange ? RENAME_SWAP : RENAME_EXCL) == 0)
        return 0;
    return errno == EINVAL || errno == ENOSYS || errno == ENOTSUP || errno == EOPNOTSUPP ? NET_ENOTSUP : errno;
}

#endif
