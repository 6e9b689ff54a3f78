/* The socket options that a system has: one table in each system's own file (on_linux.h, …), the same names everywhere.
 * What is not in it, the system lacks.
 *
 * An option has a number for IPv4 and one for IPv6, often the same; a socket of another family takes the first.
 * `inherited`: accepted connections have it from their listener. That is measured on Linux (tests/test_options.py) and
 * told by Microsoft for Windows; where it is not known, the option is set on each connection again, which harms nothing.
 */
#ifndef HARKEN_OPTIONS_H
#define HARKEN_OPTIONS_H

typedef struct {
    const char *name;
    int level, option;
    int level6, option6;
    int inherited;
} net_option_t;

#define NET_BOTH(name, level, option, inherited) {name, level, option, level, option, inherited}
#define NET_NO_MORE_OPTIONS {NULL, 0, 0, 0, 0, 0}

#endif
