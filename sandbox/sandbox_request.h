/*
 * sandbox_request.h
 *		How the worker and the first process of a sandbox understand each other.
 */
#ifndef LEASEHOLD_SANDBOX_REQUEST_H
#define LEASEHOLD_SANDBOX_REQUEST_H

#define SANDBOX_ARGS_FD		3	/* bubblewrap's arguments */
#define SANDBOX_REQUEST_FD	4	/* the command: see read_request() */
#define SANDBOX_STATUS_FD	5	/* a socket */

/*
 * On the socket come lines: "begun", then "exit CODE" or "signal NUMBER"; or
 * "gone", if nobody holds the workspace any more; or "error TEXT", if there is
 * nothing to run it with.  A byte to it is a signal's number, which everything in
 * the sandbox is sent.
 */

/* data, file size, seconds of processor, core: each as text, empty for none */
#define SANDBOX_LIMITS		4

#endif							/* LEASEHOLD_SANDBOX_REQUEST_H */
