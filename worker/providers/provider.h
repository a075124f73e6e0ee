/*
 * provider.h
 *		What a provider is to the worker: functions that begin a call.
 */
#ifndef LEASEHOLD_PROVIDER_H
#define LEASEHOLD_PROVIDER_H

#include "call.h"

/*
 * Begins a call and returns at once.  The provider sets the outcome and calls
 * worker_call_finished(), from the event loop or before it returns.  What it
 * holds meanwhile belongs to the call's memory context (reset callbacks free
 * foreign resources), so deleting the context abandons the call.
 */
typedef void (*ProviderStart) (Call *call);

typedef struct Provider
{
	const char *name;
	ProviderStart initialize;	/* NULL: not needed, or not supported */
	ProviderStart acquire;
	ProviderStart resume;
	ProviderStart realize;		/* the workspace of a resource that was just got */
	ProviderStart release;
	ProviderStart destroy;
	ProviderStart find;			/* by lease id and generation */
	ProviderStart list;			/* by label */
	ProviderStart execute;		/* a command; its output goes to command_output_add() */
	ProviderStart cancel;		/* a command that is out, or was left by another worker */
	bool		(*withdraw) (Call *call);	/* NULL: cannot be told */
	void		(*abandon) (Call *call);	/* a command */
} Provider;

extern const Provider fake_provider;
extern const Provider bubblewrap_provider;
extern const Provider http_plugin_provider;

/* Begins the call at whatever serves it. */
extern void provider_start(Call *call);

/*
 * Takes back a call that is out; false if it may have had an effect already.
 * One that was taken back must be finished by the caller.
 */
extern bool provider_withdraw(Call *call);

/* A command that is out says nothing more; the caller finishes it. */
extern void provider_abandon(Call *call);

#endif							/* LEASEHOLD_PROVIDER_H */
