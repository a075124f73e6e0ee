/*
 * plugin_command.h
 *		Commands of plugins over HTTP.
 */
#ifndef LEASEHOLD_PLUGIN_COMMAND_H
#define LEASEHOLD_PLUGIN_COMMAND_H

#include "http_plugin.h"
#include "rpc_command.h"

/* A command is about to be sent. */
extern void plugin_command_prepare(PluginCall *state);

/* A notification came; false if no more should come for now. */
extern bool plugin_command_notified(PluginCall *state, const RpcAnswer *notification);

/* After each message that was not the answer: whether the next is to wait for http_resume(), which comes soon. */
extern bool plugin_command_brakes(PluginCall *state, size_t length);

/* The result came: sets how the command ended, and the outcome. */
extern void plugin_command_ended(PluginCall *state, const json_t *result);

/* Of the provider: ends a command. */
extern void plugin_command_cancel(Call *call);

/* The plugin has answered that; its outcome is set. */
extern void plugin_command_cancelled(const Call *call);

/* The exchange is over. */
extern void plugin_command_forget(PluginCall *state);

#endif							/* LEASEHOLD_PLUGIN_COMMAND_H */
