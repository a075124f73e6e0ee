/*
 * http_plugin.h
 *		A call that is out to a plugin over HTTP.
 */
#ifndef LEASEHOLD_HTTP_PLUGIN_H
#define LEASEHOLD_HTTP_PLUGIN_H

#include "call.h"
#include "http_client.h"

/* Of a call that carries out a command: plugin_command.c's. */
typedef struct PluginCommand PluginCommand;

typedef struct PluginCall
{
	Call	   *call;
	HttpExchange *exchange;		/* NULL once it has ended */
	char		request_id[64];
	PolicyNetwork *allowed;
	PluginCommand *command;		/* METHOD_EXECUTE; else NULL */
	MemoryContextCallback cleanup;
} PluginCall;

/* Of the provider: see provider.h. */
extern void plugin_start(Call *call);
extern bool plugin_withdraw(Call *call);

/* Ends a call that is out, whatever may come of it. */
extern void plugin_give_up(Call *call, CallOutcome outcome, const char *code, const char *message);

/* An answer came, but none that can be understood. */
extern void plugin_answered_badly(Call *call, const char *text);

#endif							/* LEASEHOLD_HTTP_PLUGIN_H */
