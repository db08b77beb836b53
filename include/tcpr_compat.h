/* Rebuilds a C program for tcpr with its source unchanged: include this after the system's headers, or have
 * the compiler do it (-include tcpr_compat.h), and link with -ltcpr.
 *
 * It maps the calls that make or end sessions to their prefixed forms. The others (read, send, poll...) need no
 * mapping: protection belongs to the descriptor, and libtcpr's own plain names serve them.
 *
 * The system's headers come first, so that their declarations keep their names. Object-like macros, so that a
 * function's name used as a value is mapped too; members of structures with such a name are renamed consistently
 * within the program.
 */
#ifndef TCPR_COMPAT_H
#define TCPR_COMPAT_H

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tcpr.h"

#define socket tcpr_socket
#define bind tcpr_bind
#define listen tcpr_listen
#define accept tcpr_accept
#define accept4 tcpr_accept4
#define connect tcpr_connect
#define close tcpr_close
#define shutdown tcpr_shutdown

#endif
