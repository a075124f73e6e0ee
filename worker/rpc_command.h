/*
 * rpc_command.h
 *		What plugins say of a command: what it writes, and how it ended.
 *
 * Plain C and jansson, like json_rpc.h.
 */
#ifndef LEASEHOLD_RPC_COMMAND_H
#define LEASEHOLD_RPC_COMMAND_H

#include "json_rpc.h"

#define RPC_MAX_SIGNAL	31		/* bytes of a signal's name */

typedef enum RpcStream
{
	RPC_STDOUT,
	RPC_STDERR
} RpcStream;

/* The result of environmentExecute.  Texts are borrowed. */
typedef struct RpcExecution
{
	bool		has_exit_code;
	int			exit_code;
	const char *signal;			/* NULL: none */
	bool		timed_out;
	bool		streamed;		/* what it wrote has come as notifications */
	const char *output[2];		/* by RpcStream; may have NUL characters */
	size_t		length[2];
} RpcExecution;

/* Whose output is expected.  run: NULL if there is none. */
typedef struct RpcScope
{
	const char *company;
	const char *command;
	const char *run;
} RpcScope;

/* What a command wrote, of a notification. */
typedef struct RpcChunk
{
	RpcStream	stream;
	const char *data;			/* borrowed; may have NUL characters */
	size_t		length;
	bool		base64;			/* it is encoded so */
} RpcChunk;

/* False, with a text, if it has another shape. */
extern bool rpc_read_execution(const json_t *result, RpcExecution *execution, char *text);

/*
 * Takes output out of a notification; false if it is something else, or of
 * another shape, or of another company or command.
 */
extern bool rpc_read_chunk(const RpcAnswer *notification, const RpcScope *scope, RpcChunk *chunk);

#endif							/* LEASEHOLD_RPC_COMMAND_H */
