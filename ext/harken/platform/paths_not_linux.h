/* Entries of directories: what only Linux has. The contract is in paths.h. */
#ifndef HARKEN_PATHS_NOT_LINUX_H
#define HARKEN_PATHS_NOT_LINUX_H

/* There is no way to a directory that is open that would be shorter than its path. */
static inline int net_file_way(const net_folder_t *folder, const char *name, char *path, size_t size)
{
    (void)folder, (void)name, (void)path, (void)size;
    return ENAMETOOLONG;
}

static inline int net_file_of(net_socket_t s, unsigned long long *inode)
{
    (void)s;
    *inode = 0;
    return EOPNOTSUPP;
}

#endif
