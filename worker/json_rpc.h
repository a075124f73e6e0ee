/*
 * json_rpc.h
 *		JSON-RPC 2.0 as plugins speak it: one request, one answer.
 *
 * Plain C and jansson: no server headers, so that the parser can be fuzzed by
 * itself.  Everything from the network is capped and checked here.
 */
#ifndef LEASEHOLD_JSON_RPC_H
#define LEASEHOLD_JSON_RPC_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* JSON-RPC's own codes, and the plugin contract's */
#define RPC_PARSE_ERROR			(-32700)
#define RPC_INVALID_REQUEST		(-32600)
#define RPC_METHOD_NOT_FOUND	(-32601)
#define RPC_INVALID_PARAMS		(-32602)
#define RPC_INTERNAL_ERROR		(-32603)
#define RPC_WORKER_UNAVAILABLE	(-32000)
#define RPC_CAPABILITY_DENIED	(-32001)
#define RPC_WORKER_ERROR		(-32002)
#define RPC_TIMEOUT				(-32003)
#define RPC_NOT_IMPLEMENTED		(-32004)
#define RPC_SCOPE_DENIED		(-32005)
#define RPC_UNKNOWN				(-32099)

#define RPC_MAX_DEPTH			64
#define RPC_MAX_ID				1000	/* bytes of a provider's lease id */
#define RPC_MAX_METADATA		65536	/* bytes of a lease's metadata as text */
#define RPC_MAX_PATH			4000
#define RPC_TEXT_SIZE			241

typedef enum RpcKind
{
	RPC_RESULT,
	RPC_ERROR,
	RPC_MALFORMED,
	RPC_NOTIFICATION,			/* no answer, but something before it */
	RPC_NOISE					/* nothing that is for us */
} RpcKind;

typedef struct RpcAnswer
{
	RpcKind		kind;
	json_t	   *root;			/* owns what the others point into; or NULL */
	json_t	   *result;			/* borrowed */
	const char *method;			/* of a notification; borrowed */
	json_t	   *params;			/* borrowed */
	int			error_code;
	char		text[RPC_TEXT_SIZE];	/* the error's message, or what is malformed; cut */
} RpcAnswer;

/* The lease of an answer to acquire, resume or find. */
typedef struct RpcLease
{
	const char *provider_lease_id;	/* borrowed; NULL: none */
	char	   *metadata;		/* malloc'd JSON text of an object; NULL: none */
	bool		has_expiry;
	int64_t		expires_at;		/* microseconds since 1970 */
} RpcLease;

/*
 * Reads an answer to the request with this id.  Anything but one well-formed
 * answer is RPC_MALFORMED.  The secret (or NULL) is masked in an error's
 * message.  rpc_free_answer() afterwards, whatever the kind.
 */
extern void rpc_parse_answer(const char *body, size_t length, const char *id, const char *secret,
							 RpcAnswer *answer);
extern void rpc_free_answer(RpcAnswer *answer);

/*
 * The same for one of several messages, of which one is the answer, and the
 * others are notifications, or noise, with a text that says why.  Texts may have
 * NUL characters: commands write them.  Halves of surrogate pairs are replaced, in
 * place, since who cuts output where he likes produces them.
 */
extern void rpc_parse_message(char *body, size_t length, const char *id, const char *secret,
							  RpcAnswer *answer);

/*
 * Takes a lease out of a result; false, with a text, if it has another shape.
 * An expiry that is no time counts as absent.  free(lease->metadata) afterwards.
 */
extern bool rpc_read_lease(const json_t *result, RpcLease *lease, char *text);

/*
 * Takes a workspace out of a result: malloc'd JSON text of {cwd, metadata}, of at
 * most RPC_MAX_METADATA bytes.  False, with a text, if it has another shape.
 */
extern bool rpc_read_workspace(const json_t *result, char **workspace, char *text);

/*
 * Takes a page of leases: malloc'd JSON text of [{providerLeaseId, leaseId,
 * companyId, generation}], and the next cursor (malloc'd, or NULL).  False, with a text,
 * if it has another shape.
 */
extern bool rpc_read_list(const json_t *result, char **listed, char **next_cursor, char *text);

#endif							/* LEASEHOLD_JSON_RPC_H */
