/*
 * fake_command.h
 *		Commands of the built-in provider for tests.
 */
#ifndef LEASEHOLD_FAKE_COMMAND_H
#define LEASEHOLD_FAKE_COMMAND_H

#include "call.h"

/* Of the provider: see provider.h. */
extern void fake_command_execute(Call *call);
extern void fake_command_cancel(Call *call);
extern void fake_command_abandon(Call *call);

#endif							/* LEASEHOLD_FAKE_COMMAND_H */
