/*
 * provider.c
 *		Finds who serves a call.
 */
#include "postgres.h"
#include "compat.h"

#include "provider.h"
#include "worker.h"

static const Provider *const built_in[] = {&fake_provider, &bubblewrap_provider};

static const Provider *provider_of(const Call *call);
static ProviderStart start_of(const Provider *provider, CallMethod method);

void
provider_start(Call *call)
{
	const Provider *provider = provider_of(call);
	ProviderStart start;

	start = provider ? start_of(provider, call->method) : NULL;
	if (start == NULL)
	{
		call_set_outcome(call, OUTCOME_FAILED, "method_not_implemented",
						 "provider \"%s\" has no %s", call->provider, call->method_name);
		worker_call_finished(call);
		return;
	}
	start(call);
}

bool
provider_withdraw(Call *call)
{
	const Provider *provider = provider_of(call);

	return provider != NULL && provider->withdraw != NULL && provider->withdraw(call);
}

void
provider_abandon(Call *call)
{
	const Provider *provider = provider_of(call);

	if (provider != NULL && provider->abandon != NULL)
		provider->abandon(call);
}

static const Provider *
provider_of(const Call *call)
{
	if (call->plugin != NULL)
		return &http_plugin_provider;
	for (int i = 0; i < (int) lengthof(built_in); i++)
	{
		if (strcmp(call->provider, built_in[i]->name) == 0)
			return built_in[i];
	}
	return NULL;
}

static ProviderStart
start_of(const Provider *provider, CallMethod method)
{
	switch (method)
	{
		case METHOD_INITIALIZE:
			return provider->initialize;
		case METHOD_ACQUIRE:
			return provider->acquire;
		case METHOD_RESUME:
			return provider->resume;
		case METHOD_REALIZE:
			return provider->realize;
		case METHOD_RELEASE:
			return provider->release;
		case METHOD_DESTROY:
			return provider->destroy;
		case METHOD_FIND:
			return provider->find;
		case METHOD_LIST:
			return provider->list;
		case METHOD_EXECUTE:
			return provider->execute;
		case METHOD_CANCEL:
			return provider->cancel;
	}
	return NULL;
}
