/*
 * fake.c
 *		The built-in provider for tests: no network, no resources, every fault.
 *
 * It keeps its "resources" in the worker's memory, so that they end with it,
 * as a provider's would that runs on the same machine.  Everything is
 * deterministic: an id is made of run, lease and generation, and faults count
 * the tries of the call.  The knobs, in the environment's configuration:
 *
 *	delayMs				answer after this time
 *	failTimes			the first n tries fail without effect
 *	failPermanently		every acquire is refused for good
 *	rateLimitTimes		the first n tries are told to come again (retryAfterMs)
 *	loseAnswerTimes		the first n tries act, but the answer is lost
 *	malformedTimes		the first n tries act, but the answer is garbage
 *	goneOnResume		a parked resource is gone when it is to be resumed
 *	releaseFailTimes	the first n tries to release or destroy fail
 *	lookup				false: cannot tell what became of a request
 */
#include "postgres.h"
#include "compat.h"

#include <jansson.h>

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "event_loop.h"
#include "fake_command.h"
#include "provider.h"
#include "worker.h"

#define FAKE_ID_SIZE	160

typedef struct FakeResource
{
	char		id[FAKE_ID_SIZE];	/* hash key */
} FakeResource;

typedef struct FakeCall
{
	Call	   *call;
	EventTimer	timer;
	MemoryContextCallback cleanup;
	void		(*act) (Call *call, const json_t *params);
} FakeCall;

static HTAB *resources = NULL;

static void fake_acquire(Call *call);
static void fake_resume(Call *call);
static void fake_remove(Call *call);
static void fake_find(Call *call);
static void begin(Call *call, void (*act) (Call *call, const json_t *params));
static void end_of_delay(void *arg);
static void cancel_delay(void *arg);
static void finish(FakeCall *state);
static void act_acquire(Call *call, const json_t *params);
static void act_resume(Call *call, const json_t *params);
static void act_remove(Call *call, const json_t *params);
static void act_find(Call *call, const json_t *params);
static int64 knob(const json_t *params, const char *name);
static void resource_id(const json_t *params, const Call *call, char *id);
static bool exists(const char *id);
static void set_exists(const char *id, bool exist);

const Provider fake_provider = {
	.name = "fake",
	.acquire = fake_acquire,
	.resume = fake_resume,
	.release = fake_remove,
	.destroy = fake_remove,
	.find = fake_find,
	.execute = fake_command_execute,
	.cancel = fake_command_cancel,
	.abandon = fake_command_abandon,
};

static void
fake_acquire(Call *call)
{
	begin(call, act_acquire);
}

static void
fake_resume(Call *call)
{
	begin(call, act_resume);
}

static void
fake_remove(Call *call)
{
	begin(call, act_remove);
}

static void
fake_find(Call *call)
{
	begin(call, act_find);
}

static void
begin(Call *call, void (*act) (Call *call, const json_t *params))
{
	FakeCall   *state = MemoryContextAllocZero(call->context, sizeof(FakeCall));
	json_t	   *params = json_loads(call->params, 0, NULL);
	int64		delay = knob(params, "delayMs");

	json_decref(params);
	call->transport = state;
	state->call = call;
	state->act = act;
	if (delay <= 0)
	{
		finish(state);
		return;
	}
	state->timer.fire = end_of_delay;
	state->timer.arg = state;
	state->cleanup.func = cancel_delay;
	state->cleanup.arg = state;
	MemoryContextRegisterResetCallback(call->context, &state->cleanup);
	event_loop_set_timer(&state->timer, delay);
}

static void
end_of_delay(void *arg)
{
	finish(arg);
}

static void
cancel_delay(void *arg)
{
	event_loop_cancel_timer(&((FakeCall *) arg)->timer);
}

static void
finish(FakeCall *state)
{
	Call	   *call = state->call;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	json_t	   *params = json_loads(call->params, 0, NULL);

	state->act(call, params);
	json_decref(params);
	MemoryContextSwitchTo(old);
	worker_call_finished(call);
}

static void
act_acquire(Call *call, const json_t *params)
{
	char		id[FAKE_ID_SIZE];

	resource_id(params, call, id);
	if (knob(params, "failPermanently"))
		call_set_outcome(call, OUTCOME_FAILED, "lease_acquire_failed", "the fake provider refuses");
	else if (call->attempt <= knob(params, "failTimes"))
		call_set_outcome(call, OUTCOME_RETRY, "provider_error", "the fake provider fails, try %d", call->attempt);
	else if (call->attempt <= knob(params, "rateLimitTimes"))
	{
		call->retry_after_ms = knob(params, "retryAfterMs");
		call_set_outcome(call, OUTCOME_THROTTLED, "provider_throttled", "the fake provider is busy");
	}
	else
	{
		set_exists(id, true);
		if (call->attempt <= knob(params, "loseAnswerTimes"))
			call_set_outcome(call, OUTCOME_UNKNOWN, "provider_unreachable", "the fake provider's answer was lost");
		else if (call->attempt <= knob(params, "malformedTimes"))
			call_set_outcome(call, OUTCOME_UNKNOWN, "malformed_answer", "the fake provider's answer is garbage");
		else
		{
			const char *image = json_string_value(json_object_get(json_object_get(params, "config"), "image"));
			json_t	   *metadata = json_pack("{s:s, s:s, s:b}", "provider", "fake",
											 "image", image ? image : "ubuntu:24.04",
											 "reuseLease", json_is_true(json_object_get(json_object_get(params, "config"), "reuseLease")));
			char	   *text = json_dumps(metadata, JSON_COMPACT);

			call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
			call->provider_lease_id = pstrdup(id);
			call->metadata = pstrdup(text);
			free(text);
			json_decref(metadata);
		}
	}
}

static void
act_resume(Call *call, const json_t *params)
{
	const char *id = json_string_value(json_object_get(params, "providerLeaseId"));

	if (knob(params, "goneOnResume") || id == NULL || !exists(id))
		call_set_outcome(call, OUTCOME_GONE, "resource_gone", "the fake provider has no such resource");
	else
	{
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
		call->provider_lease_id = pstrdup(id);
	}
}

static void
act_remove(Call *call, const json_t *params)
{
	const char *id = json_string_value(json_object_get(params, "providerLeaseId"));
	const char *disposition = json_string_value(json_object_get(json_object_get(params, "leasehold"), "disposition"));

	if (call->attempt <= knob(params, "releaseFailTimes"))
	{
		call_set_outcome(call, OUTCOME_RETRY, "lease_cleanup_failed", "the fake provider fails, try %d", call->attempt);
		return;
	}
	if (id != NULL && (call->method == METHOD_DESTROY || disposition == NULL || strcmp(disposition, "delete") == 0))
		set_exists(id, false);
	call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
}

static void
act_find(Call *call, const json_t *params)
{
	char		id[FAKE_ID_SIZE];
	const json_t *lookup = json_object_get(json_object_get(params, "config"), "lookup");

	resource_id(params, call, id);
	if (json_is_false(lookup))
		call_set_outcome(call, OUTCOME_FAILED, "method_not_implemented", "the fake provider cannot look up");
	else if (!exists(id))
		call_set_outcome(call, OUTCOME_GONE, "resource_gone", "the fake provider has no such resource");
	else
	{
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
		call->provider_lease_id = pstrdup(id);
	}
}

/* A number or true in the configuration; 0 if absent. */
static int64
knob(const json_t *params, const char *name)
{
	const json_t *value = json_object_get(json_object_get(params, "config"), name);

	if (json_is_true(value))
		return 1;
	return json_is_integer(value) ? json_integer_value(value) : 0;
}

static void
resource_id(const json_t *params, const Call *call, char *id)
{
	const json_t *label = json_object_get(params, "leasehold");
	const char *lease = json_string_value(json_object_get(label, "leaseId"));

	snprintf(id, FAKE_ID_SIZE, "sandbox://fake/%s/%d", lease ? lease : "?", call->generation);
}

static bool
exists(const char *id)
{
	char		key[FAKE_ID_SIZE];

	strlcpy(key, id, sizeof(key));
	return resources != NULL && hash_search(resources, key, HASH_FIND, NULL) != NULL;
}

static void
set_exists(const char *id, bool exist)
{
	char		key[FAKE_ID_SIZE];

	if (resources == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = FAKE_ID_SIZE;
		ctl.entrysize = sizeof(FakeResource);
		resources = hash_create("leasehold fake resources", 64, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	strlcpy(key, id, sizeof(key));
	hash_search(resources, key, exist ? HASH_ENTER : HASH_REMOVE, NULL);
}
