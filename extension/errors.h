/*
 * errors.h
 *		Every error that a user can meet: its machine code and SQLSTATE.
 *
 * One row per code.  docs/errors.md lists the same rows, and a test compares
 * the two.  The SQLSTATEs are chosen for connection pools and PostgREST: PTxyz
 * becomes HTTP status xyz there, and none belongs to class 08, 40 or 57, which
 * pools take for a lost connection, a retry or a shutdown.
 *
 * The machine code travels in DETAIL as JSON: {"code": "lease_not_found"}.
 */
#ifndef LEASEHOLD_ERRORS_H
#define LEASEHOLD_ERRORS_H

#define LEASEHOLD_ERRORS(X) \
	/* not there, or another company's */ \
	X(COMPANY_NOT_FOUND, "company_not_found", "PT404") \
	X(MEMBER_NOT_FOUND, "member_not_found", "PT404") \
	X(ROLE_NOT_FOUND, "role_not_found", "PT404") \
	X(AGENT_NOT_FOUND, "agent_not_found", "PT404") \
	X(PROJECT_NOT_FOUND, "project_not_found", "PT404") \
	X(ISSUE_NOT_FOUND, "issue_not_found", "PT404") \
	X(WORKSPACE_NOT_FOUND, "execution_workspace_not_found", "PT404") \
	X(RUN_NOT_FOUND, "run_not_found", "PT404") \
	X(ROUTINE_NOT_FOUND, "routine_not_found", "PT404") \
	X(ENVIRONMENT_NOT_FOUND, "environment_not_found", "PT404") \
	X(PLUGIN_NOT_FOUND, "plugin_not_found", "PT404") \
	X(PROVIDER_NOT_FOUND, "provider_not_found", "PT404") \
	X(LEASE_NOT_FOUND, "lease_not_found", "PT404") \
	X(CALL_NOT_FOUND, "call_not_found", "PT404") \
	X(COMMAND_NOT_FOUND, "command_not_found", "PT404") \
	/* the argument itself is wrong */ \
	X(ARGUMENT_REQUIRED, "argument_required", "22023") \
	X(ARGUMENT_INVALID, "argument_invalid", "22023") \
	X(ARGUMENT_TOO_LARGE, "argument_too_large", "22023") \
	X(KEY_INVALID, "key_invalid", "22023") \
	X(CONFIG_INVALID, "config_invalid", "22023") \
	X(MANIFEST_INVALID, "manifest_invalid", "22023") \
	X(TRANSPORT_INVALID, "transport_invalid", "22023") \
	X(COMPANY_AMBIGUOUS, "company_ambiguous", "22023") \
	/* not allowed */ \
	X(FORBIDDEN, "forbidden", "42501") \
	X(RESTRICTED_OPERATION, "restricted_operation", "42501") \
	X(ACTOR_FORBIDDEN, "actor_forbidden", "42501") \
	X(APPEND_ONLY, "append_only", "42501") \
	/* taken */ \
	X(ALREADY_EXISTS, "already_exists", "23505") \
	/* the state of things, or somebody was faster */ \
	X(WRONG_STATE, "wrong_state", "PT409") \
	X(ILLEGAL_TRANSITION, "illegal_transition", "PT409") \
	X(STALE_VERSION, "stale_version", "PT409") \
	X(IDEMPOTENCY_CONFLICT, "idempotency_conflict", "PT409") \
	X(STILL_IN_USE, "still_in_use", "PT409") \
	X(DROP_GUARDED, "drop_guarded", "PT409") \
	/* well-formed, but refused */ \
	X(ENVIRONMENT_INACTIVE, "environment_inactive", "PT422") \
	X(COMPANY_INACTIVE, "company_inactive", "PT422") \
	X(PROVIDER_UNUSABLE, "provider_unusable", "PT422") \
	X(PROVIDER_FORBIDDEN, "provider_forbidden", "PT422") \
	X(ROLE_UNSUITABLE, "role_unsuitable", "PT422") \
	X(IMPORT_REFUSED, "import_refused", "PT422") \
	X(COMMAND_FAILED, "command_failed", "PT422") \
	/* too many */ \
	X(QUOTA_EXCEEDED, "quota_exceeded", "PT429") \
	/* nobody there to do it */ \
	X(WORKER_UNAVAILABLE, "worker_unavailable", "PT503") \
	X(INSTALLATION_HELD, "installation_held", "PT503") \
	X(LEASE_ACQUIRE_FAILED, "lease_acquire_failed", "PT503") \
	/* the session's own circumstances */ \
	X(READ_ONLY, "read_only", "25006") \
	X(OWN_TRANSACTION, "own_transaction", "25001") \
	X(TRANSACTION_BLOCK, "transaction_block", "25001") \
	X(NOT_PRELOADED, "not_preloaded", "55000")

#define LEASEHOLD_ERROR_ENUM(name, code, sqlstate) LHE_##name,
typedef enum LeaseholdError
{
	LEASEHOLD_ERRORS(LEASEHOLD_ERROR_ENUM)
	LHE_COUNT
} LeaseholdError;
#undef LEASEHOLD_ERROR_ENUM

/*
 * For use inside ereport(): sets the SQLSTATE and the DETAIL of one row.
 */
extern int	leasehold_error(LeaseholdError error);

#endif							/* LEASEHOLD_ERRORS_H */
