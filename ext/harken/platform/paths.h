/* Directory entries, for unix sockets: the system calls of _paths.pyx. The contract of net.h holds here too.
 *
 * A folder is opened once, and names are looked up in it: the owner of a folder above it may rename that at any time.
 *
 *   net_folder_open, net_folder_close   a directory; on Windows its path
 *   net_folder_private          makes a directory in it that no other user can enter or change
 *   net_folder_remove           removes an empty one
 *   net_file_look               what has this name; does not follow a symbolic link. A missing file is not an error
 *   net_file_move               renames it, unless the new name exists: one atomic step, or link and unlink, for which
 *                               the old name must be in a private directory
 *   net_file_replace            renames it to a name in a private directory: always one step
 *   net_file_exchange           two names change places: one atomic step where the system and the file system can do
 *                               it, else several, with the second name missing for a moment
 *   net_file_remove             removes a name
 *   net_file_give               sets owner and mode of the socket that `whose` says, whatever has the name by then
 *   net_file_knock              whether a process has the socket of this name
 *   net_file_hold, net_file_links  holds the file that has this name, and tells how many names it has later; where the
 *                               system can
 *   net_file_of                 the inode to which a socket is bound, where the system tells
 *   net_begins_with             from now on bind() makes a path with this mode, less the umask, where sockets have one
 *   net_file_way                a short path to a name in a folder, where there is one
 *   net_path_put                a path as an address
 */
#ifndef HARKEN_PATHS_H
#define HARKEN_PATHS_H

#include "platform/net.h"

enum { NET_NOTHING, NET_A_SOCKET, NET_SOMETHING };

typedef struct {
    int kind, mode; /* the mode with its sticky bit */
    unsigned long long device, inode;
} net_file_t;

#define NET_MARKED 01000 /* a bit of the mode that no other server's socket has */

/* Results of net_file_knock. Nobody: a server that ended has left it. Forbidden: this user may not connect to it. */
enum { NET_NOBODY, NET_SOMEBODY, NET_FORBIDDEN };

static inline int net_path_put(const char *path, net_address_t *address, net_length_t *length);

#if defined(_WIN32)
#include "platform/paths_on_windows.h"
#elif defined(__linux__)
#include "platform/paths_on_linux.h"
#elif defined(__APPLE__)
#include "platform/paths_on_darwin.h"
#else
#include "platform/paths_on_other.h"
#endif

static inline int net_same_file(const net_file_t *one, const net_file_t *other)
{
    return one->kind != NET_NOTHING && one->kind == other->kind && one->inode == other->inode &&
           one->device == other->device;
}

static inline int net_path_put(const char *path, net_address_t *address, net_length_t *length)
{
    size_t size = strlen(path) + 1;
    if (size > NET_PATH_ROOM)
        return NET_ENAMETOOLONG;
    memset(address, 0, sizeof *address);
    address->un.sun_family = AF_UNIX;
    memcpy(address->un.sun_path, path, size);
    *length = (net_length_t)(NET_PATH_AT + size);
    return 0;
}

#define NET_ASIDE ".harken-aside"

/* Where the two cannot change places in one step. The folder `from` is ours alone, so that its names are free. What was
 * at the second name is put back when the first cannot get there: unless it is not `missed`, or dead. */
static inline int net_exchange_by_hand(const net_folder_t *from, const char *name, const net_folder_t *to,
                                       const char *other, int missed)
{
    int lives = NET_SOMEBODY, error = net_file_replace(to, other, from, NET_ASIDE);
    if (error)
        return error;
    error = net_file_move(from, name, to, other);
    if (error == 0)
        return net_file_move(from, NET_ASIDE, from, name);
    /* It came between us and a name that was missing for a moment. Of the two that live, the first has it. */
    if (!missed || (net_file_knock(from, NET_ASIDE, &lives) == 0 && lives == NET_NOBODY))
        net_file_remove(from, NET_ASIDE);
    else
        net_file_replace(from, NET_ASIDE, to, other);
    return error;
}

static inline int net_file_exchange(const net_folder_t *from, const char *name, const net_folder_t *to,
                                    const char *other, int missed)
{
    int error = net_exchange(from, name, to, other);
    return error == NET_ENOTSUP ? net_exchange_by_hand(from, name, to, other, missed) : error;
}

#endif
