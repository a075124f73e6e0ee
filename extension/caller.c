/*
 * caller.c
 *		The entry gate of the SQL API, and the company that a call is about.
 *
 * Every public function is declared with the C symbol leasehold_gate and has
 * its implementation, of the same name and arguments, in leasehold_internal.
 * The gate
 *	- refuses to run inside a security-restricted operation (REINDEX, ANALYZE,
 *	  REFRESH of somebody's hostile table or view by a superuser),
 *	- checks that no argument without a default is NULL and none is oversized,
 *	- notes the role that was current as the caller,
 *	- switches to the owner of the implementation and pins search_path,
 *	- undoes both however the implementation ends.
 * Nothing here trusts session_user or the setting "role": SET ROLE, definer
 * functions of an application, poolers and PostgREST all show up as what
 * GetUserId() says at the gate.
 *
 * The company of a call is its company argument, else what use_company() chose
 * for this transaction, else the caller's only membership.
 */
#include "postgres.h"
#include "compat.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "caller.h"
#include "errors.h"
#include "membership.h"

PG_FUNCTION_INFO_V1(leasehold_gate);
PG_FUNCTION_INFO_V1(leasehold_acting_role);
PG_FUNCTION_INFO_V1(leasehold_asserted_actor);
PG_FUNCTION_INFO_V1(leasehold_visible_companies);
PG_FUNCTION_INFO_V1(leasehold_enter_company);
PG_FUNCTION_INFO_V1(leasehold_enter_own_membership);
PG_FUNCTION_INFO_V1(leasehold_enter_admin);
PG_FUNCTION_INFO_V1(leasehold_is_admin);
PG_FUNCTION_INFO_V1(leasehold_choose_company);

#define MAX_ARGUMENT_SIZE	(1024 * 1024)
#define MAX_ACTOR_SIZE		200
#define MAX_KEY_SHOWN		63

typedef struct CallerFrame
{
	struct CallerFrame *outer;
	Oid			caller;
	Oid			owner;			/* current role while the implementation runs */
	bool		all_companies;	/* after enter_admin() */
	bool		has_company;	/* after enter_company() */
	bool		own_membership; /* after enter_own_membership(): the level is not asked */
	pg_uuid_t	company;
} CallerFrame;

/* What the gate knows of one public function; lives as long as the call site. */
typedef struct GateTarget
{
	FmgrInfo	implementation;
	Oid			owner;
	int			required;		/* arguments without a default come first */
	char	  **argument_names;
	bool	   *argument_varlena;
} GateTarget;

/*
 * What use_company() chose; valid for one transaction.  A choice made in a
 * subtransaction hides the one before, until that subtransaction is undone.
 */
typedef struct CompanyChoice
{
	struct CompanyChoice *before;
	int			nest_level;		/* of the (sub)transaction that made it */
	pg_uuid_t	company;
	char		actor[MAX_ACTOR_SIZE + 1];
} CompanyChoice;

static CallerFrame *current_frame = NULL;
static CompanyChoice *choice = NULL;	/* in TopTransactionContext */

static GateTarget *gate_target(FmgrInfo *flinfo);
static void gate_check_arguments(FunctionCallInfo fcinfo, GateTarget *target);
static Datum gate_call(FunctionCallInfo fcinfo, GateTarget *target);
static bool company_in_scope(const MembershipList *list, pg_uuid_t *company);
static void require_writable(void);
static void refuse_ambiguous(const MembershipList *list) pg_attribute_noreturn();
static void refuse_company(const char *key) pg_attribute_noreturn();
static void caller_xact_callback(XactEvent event, void *arg);
static void caller_subxact_callback(SubXactEvent event, SubTransactionId mine,
									SubTransactionId parent, void *arg);

void
caller_init(void)
{
	RegisterXactCallback(caller_xact_callback, NULL);
	RegisterSubXactCallback(caller_subxact_callback, NULL);
}

Oid
caller_role(void)
{
	Oid			user = GetUserId();

	if (caller_is_within_gate())
		return current_frame->caller;
	return user;
}

bool
caller_is_within_gate(void)
{
	return current_frame != NULL && current_frame->owner == GetUserId();
}

/*
 * The C side of every public function.
 */
Datum
leasehold_gate(PG_FUNCTION_ARGS)
{
	GateTarget *volatile target = fcinfo->flinfo->fn_extra;
	CallerFrame frame;
	Oid			save_user;
	int			save_sec_context;
	int			save_nestlevel;
	Datum		result;

	if (target == NULL)
		fcinfo->flinfo->fn_extra = target = gate_target(fcinfo->flinfo);

	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				(leasehold_error(LHE_RESTRICTED_OPERATION),
				 errmsg("function %s cannot be called within a security-restricted operation",
						get_func_name(fcinfo->flinfo->fn_oid)),
				 errhint("It was reached from an index expression, a materialized view or the like, which must not act for the role that maintains it.")));
	gate_check_arguments(fcinfo, target);

	memset(&frame, 0, sizeof(frame));
	frame.outer = current_frame;
	frame.caller = caller_role();
	frame.owner = target->owner;

	GetUserIdAndSecContext(&save_user, &save_sec_context);
	save_nestlevel = NewGUCNestLevel();
	PG_TRY();
	{
		current_frame = &frame;
		SetUserIdAndSecContext(target->owner,
							   save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
		(void) set_config_option("search_path", "pg_catalog, pg_temp",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);

		/*
		 * statements that find rows by key gain nothing from being planned
		 * anew
		 */
		(void) set_config_option("plan_cache_mode", "force_generic_plan",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
		result = gate_call(fcinfo, target);
	}
	PG_FINALLY();
	{
		current_frame = frame.outer;
	}
	PG_END_TRY();
	/* after an error, the end of the (sub)transaction restores these two */
	AtEOXact_GUC(true, save_nestlevel);
	SetUserIdAndSecContext(save_user, save_sec_context);

	return result;
}

/*
 * Looks up the implementation: the function of the same name and argument
 * types in leasehold_internal.
 */
static GateTarget *
gate_target(FmgrInfo *flinfo)
{
	MemoryContext old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	GateTarget *target = palloc0(sizeof(GateTarget));
	HeapTuple	tuple;
	Form_pg_proc proc;
	Oid			implementation;
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			nall;

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(flinfo->fn_oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", flinfo->fn_oid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);

	implementation = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
									 PointerGetDatum(NameStr(proc->proname)),
									 PointerGetDatum(&proc->proargtypes),
									 ObjectIdGetDatum(get_namespace_oid("leasehold_internal", false)));
	if (!OidIsValid(implementation))
		elog(ERROR, "function %s has no implementation", NameStr(proc->proname));

	fmgr_info_cxt(implementation, &target->implementation, flinfo->fn_mcxt);
	target->required = proc->pronargs - proc->pronargdefaults;
	target->argument_names = palloc0(proc->pronargs * sizeof(char *));
	target->argument_varlena = palloc0(proc->pronargs * sizeof(bool));

	/* input arguments come first in all our declarations */
	nall = get_func_arg_info(tuple, &types, &names, &modes);
	for (int i = 0; i < proc->pronargs && i < nall; i++)
	{
		target->argument_names[i] = names ? names[i] : "?";
		target->argument_varlena[i] = get_typlen(types[i]) == -1;
	}
	ReleaseSysCache(tuple);

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(implementation));
	target->owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);

	MemoryContextSwitchTo(old);
	return target;
}

static void
gate_check_arguments(FunctionCallInfo fcinfo, GateTarget *target)
{
	for (int i = 0; i < fcinfo->nargs; i++)
	{
		if (fcinfo->args[i].isnull)
		{
			if (i < target->required)
				ereport(ERROR,
						(leasehold_error(LHE_ARGUMENT_REQUIRED),
						 errmsg("argument \"%s\" must not be null",
								target->argument_names[i])));
			continue;
		}
		if (target->argument_varlena[i] &&
			toast_raw_datum_size(fcinfo->args[i].value) > MAX_ARGUMENT_SIZE)
			ereport(ERROR,
					(leasehold_error(LHE_ARGUMENT_TOO_LARGE),
					 errmsg("argument \"%s\" is too large", target->argument_names[i]),
					 errhint("The limit is %d bytes.", MAX_ARGUMENT_SIZE)));
	}
}

static Datum
gate_call(FunctionCallInfo fcinfo, GateTarget *target)
{
	LOCAL_FCINFO(inner, FUNC_MAX_ARGS);
	Datum		result;

	InitFunctionCallInfoData(*inner, &target->implementation, fcinfo->nargs,
							 fcinfo->fncollation, fcinfo->context, fcinfo->resultinfo);
	memcpy(inner->args, fcinfo->args, fcinfo->nargs * sizeof(NullableDatum));

	/* rows must be complete before the caller's identity is restored */
	if (fcinfo->resultinfo != NULL && IsA(fcinfo->resultinfo, ReturnSetInfo))
		((ReturnSetInfo *) fcinfo->resultinfo)->allowedModes &= ~SFRM_ValuePerCall;

	result = FunctionCallInvoke(inner);
	fcinfo->isnull = inner->isnull;
	return result;
}

/*
 * acting_role() returns name
 */
Datum
leasehold_acting_role(PG_FUNCTION_ARGS)
{
	Name		name = palloc(NAMEDATALEN);

	namestrcpy(name, GetUserNameFromId(caller_role(), false));
	PG_RETURN_NAME(name);
}

/*
 * asserted_actor() returns text: whom the application says it acts for, as
 * given to use_company() in this transaction, or NULL.
 *
 * It was said about one company, by a role that may say it there: events of
 * other companies, and of roles that may not, must not carry it.
 */
Datum
leasehold_asserted_actor(PG_FUNCTION_ARGS)
{
	const Membership *membership;

	if (choice == NULL || choice->actor[0] == '\0' || !caller_is_within_gate() ||
		!current_frame->has_company ||
		memcmp(&current_frame->company, &choice->company, UUID_LEN) != 0)
		PG_RETURN_NULL();
	membership = membership_find(membership_of_role(caller_role()), &choice->company);
	if (membership == NULL || !membership->asserts_actor)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(choice->actor));
}

/*
 * visible_companies(level text) returns uuid[]
 *		The companies whose rows the caller may see that need this level.
 *
 * Row security policies compare company_id with this.  Inside a public
 * function that entered a company it is that one alone.
 */
Datum
leasehold_visible_companies(PG_FUNCTION_ARGS)
{
	MemberLevel level = membership_parse_level(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	const MembershipList *list = membership_of_role(caller_role());
	bool		in_frame = caller_is_within_gate();
	bool		admin_sees = list->admin && level == LEVEL_VIEWER;
	pg_uuid_t	scope;
	Datum	   *ids = NULL;
	int			count = 0;
	Datum		one;

	if (level == LEVEL_NONE)
		ereport(ERROR,
				(leasehold_error(LHE_ARGUMENT_INVALID),
				 errmsg("argument \"level\" has a value that is not allowed"),
				 errhint("Allowed: viewer, user, manager.")));
	if (in_frame && current_frame->has_company)
		scope = current_frame->company;
	else if (in_frame && current_frame->all_companies)
		ids = membership_all_companies(&count);
	else if (!company_in_scope(list, &scope))
	{
		if (admin_sees && choice == NULL)
			ids = membership_all_companies(&count);
		else
			PG_RETURN_ARRAYTYPE_P(construct_empty_array(UUIDOID));
	}

	if (ids == NULL)
	{
		const Membership *membership = membership_find(list, &scope);

		if (admin_sees || (in_frame && current_frame->own_membership && level == LEVEL_VIEWER) ||
			(membership != NULL && membership->level >= level))
		{
			one = UUIDPGetDatum(&scope);
			ids = &one;
			count = 1;
		}
	}
	if (count == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(UUIDOID));
	PG_RETURN_ARRAYTYPE_P(construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/*
 * enter_company(company text, level text, admin_may bool) returns uuid
 *		Resolves the company of a public function and checks the caller's level.
 *
 * From here on the implementation sees this company's rows only.  A company
 * that does not exist and one that the caller does not belong to give the same
 * error.  admin_may lets leasehold_admin in without a membership.
 */
Datum
leasehold_enter_company(PG_FUNCTION_ARGS)
{
	char	   *key = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	MemberLevel level = membership_parse_level(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	bool		admin_may = PG_GETARG_BOOL(2);
	pg_uuid_t  *company = palloc(sizeof(pg_uuid_t));
	const MembershipList *list;
	const Membership *membership;

	if (current_frame == NULL)
		elog(ERROR, "enter_company: not within a public function");

	if (key != NULL && !membership_company_by_key(key, company))
		refuse_company(key);
	list = membership_of_role(caller_role());
	if (key == NULL && !company_in_scope(list, company))
		refuse_ambiguous(list);
	if (level > LEVEL_VIEWER)
		require_writable();

	membership = membership_find(list, company);
	if (!(admin_may && list->admin))
	{
		if (membership == NULL)
			refuse_company(key);
		if (membership->level < level)
			ereport(ERROR,
					(leasehold_error(LHE_FORBIDDEN),
					 errmsg("role \"%s\" may not do this in the company",
							GetUserNameFromId(caller_role(), false)),
					 errhint("It needs a membership of level %s: see grant_company().",
							 level == LEVEL_MANAGER ? "manager" :
							 level == LEVEL_USER ? "user" : "viewer")));
	}

	current_frame->has_company = true;
	current_frame->company = *company;
	PG_RETURN_UUID_P(company);
}

/*
 * enter_own_membership(company text) returns uuid
 *		For what a role does about its own membership, which may be a pending
 *		one.  NULL if it has none in the company, or that does not exist.
 */
Datum
leasehold_enter_own_membership(PG_FUNCTION_ARGS)
{
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	pg_uuid_t  *company = palloc(sizeof(pg_uuid_t));

	if (current_frame == NULL)
		elog(ERROR, "enter_own_membership: not within a public function");
	if (!membership_company_by_key(key, company) || !membership_is_own(caller_role(), company))
		PG_RETURN_NULL();
	require_writable();

	current_frame->has_company = true;
	current_frame->company = *company;
	current_frame->own_membership = true;
	PG_RETURN_UUID_P(company);
}

/*
 * enter_admin(): for functions about the installation, not one company.
 */
Datum
leasehold_enter_admin(PG_FUNCTION_ARGS)
{
	if (current_frame == NULL)
		elog(ERROR, "enter_admin: not within a public function");
	if (!membership_of_role(caller_role())->admin)
		ereport(ERROR,
				(leasehold_error(LHE_FORBIDDEN),
				 errmsg("role \"%s\" may not administer the installation",
						GetUserNameFromId(caller_role(), false)),
				 errhint("It needs the role leasehold_admin.")));
	current_frame->all_companies = true;
	PG_RETURN_VOID();
}

/* is_admin() returns bool: whether the caller has leasehold_admin's privileges */
Datum
leasehold_is_admin(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(membership_of_role(caller_role())->admin);
}

/*
 * choose_company(company text, actor text) returns uuid
 *		Behind use_company(): sets the company, and whom the caller acts for,
 *		until the transaction ends.  Without a company it is the caller's only
 *		one.
 */
Datum
leasehold_choose_company(PG_FUNCTION_ARGS)
{
	char	   *key = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *actor = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	int			nest_level = GetCurrentTransactionNestLevel();
	const MembershipList *list;
	const Membership *membership;
	pg_uuid_t  *company = palloc(sizeof(pg_uuid_t));

	if (key != NULL && !membership_company_by_key(key, company))
		refuse_company(key);
	list = membership_of_role(caller_role());
	if (key == NULL && !company_in_scope(list, company))
		refuse_ambiguous(list);
	membership = membership_find(list, company);
	if (membership == NULL && !list->admin)
		refuse_company(key);

	if (actor != NULL)
	{
		if (strlen(actor) > MAX_ACTOR_SIZE || actor[0] == '\0')
			ereport(ERROR,
					(leasehold_error(LHE_ARGUMENT_INVALID),
					 errmsg("argument \"actor\" must have 1 to %d bytes", MAX_ACTOR_SIZE)));
		if (membership == NULL || !membership->asserts_actor)
			ereport(ERROR,
					(leasehold_error(LHE_ACTOR_FORBIDDEN),
					 errmsg("role \"%s\" may not act for others in the company",
							GetUserNameFromId(caller_role(), false)),
					 errhint("Grant the membership with asserts_actor => true.")));
	}

	if (choice == NULL || choice->nest_level < nest_level)
	{
		CompanyChoice *new_choice = MemoryContextAlloc(TopTransactionContext, sizeof(CompanyChoice));

		new_choice->before = choice;
		new_choice->nest_level = nest_level;
		choice = new_choice;
	}
	choice->company = *company;
	strlcpy(choice->actor, actor ? actor : "", sizeof(choice->actor));
	PG_RETURN_UUID_P(company);
}

/*
 * The company when no argument names one.
 */
static bool
company_in_scope(const MembershipList *list, pg_uuid_t *company)
{
	if (choice != NULL)
		*company = choice->company;
	else if (list->count == 1)
		*company = list->items[0].company;
	else
		return false;
	return true;
}

static void
require_writable(void)
{
	if (XactReadOnly)
		ereport(ERROR,
				(leasehold_error(LHE_READ_ONLY),
				 errmsg("cannot change anything in a read-only transaction"),
				 errhint(RecoveryInProgress() ?
						 "This server is a standby; connect to the primary." :
						 "Use SET TRANSACTION READ WRITE.")));
}

static void
refuse_ambiguous(const MembershipList *list)
{
	if (list->count == 0)
		ereport(ERROR,
				(leasehold_error(LHE_COMPANY_AMBIGUOUS),
				 errmsg("no company is chosen, and role \"%s\" belongs to none",
						GetUserNameFromId(caller_role(), false)),
				 errhint("Give the argument \"company\", or have a manager call grant_company(), and accept_company().")));
	ereport(ERROR,
			(leasehold_error(LHE_COMPANY_AMBIGUOUS),
			 errmsg("no company is chosen, and role \"%s\" belongs to several",
					GetUserNameFromId(caller_role(), false)),
			 errhint("Give the argument \"company\", or call use_company() first in the same transaction.")));
}

static void
refuse_company(const char *key)
{
	if (key == NULL)
		ereport(ERROR,
				(leasehold_error(LHE_COMPANY_NOT_FOUND),
				 errmsg("the chosen company does not exist for role \"%s\"",
						GetUserNameFromId(caller_role(), false))));
	ereport(ERROR,
			(leasehold_error(LHE_COMPANY_NOT_FOUND),
			 errmsg("company \"%.*s\" does not exist",
					pg_mbcliplen(key, strlen(key), MAX_KEY_SHOWN), key),
			 errhint("Companies that the role does not belong to are not shown.")));
}

static void
caller_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			choice = NULL;		/* its memory goes with the transaction */
			break;
		default:
			break;
	}
}

static void
caller_subxact_callback(SubXactEvent event, SubTransactionId mine,
						SubTransactionId parent, void *arg)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (choice == NULL || choice->nest_level < nest_level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		choice = choice->before;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		choice->nest_level = nest_level - 1;
		if (choice->before != NULL && choice->before->nest_level == choice->nest_level)
			choice->before = choice->before->before;
	}
}
