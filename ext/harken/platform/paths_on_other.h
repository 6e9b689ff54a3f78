/* Entries of directories on the BSDs, and on systems that harken does not know. The contract is in paths.h. */
#ifndef HARKEN_PATHS_ON_OTHER_H
#define HARKEN_PATHS_ON_OTHER_H

#include "platform/paths_on_posix.h"
#include "platform/paths_not_linux.h"

/* There is no rename() with a condition. */
static inline int net_rename(const net_folder_t *from, const char *name, const net_folder_t *to, const char *other,
                             int exchange)
{
    (void)from, (void)name, (void)to, (void)other, (void)exchange;
    return NET_ENOTSUP;
}

#endif
