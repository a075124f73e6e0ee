/*
 * client_message.h
 *		Messages for the client of this session alone.
 */
#ifndef LEASEHOLD_CLIENT_MESSAGE_H
#define LEASEHOLD_CLIENT_MESSAGE_H

#include "datatype/timestamp.h"

/*
 * Sends an INFO, which clients show whatever client_min_messages says.  It is
 * never in the server log, whatever log_min_messages says, and no other
 * extension sees it.  What the client's encoding has not becomes a question mark.
 */
extern void client_message(const char *text);

/*
 * Waits until a message of some kilobytes can be sent without waiting for the
 * client to read; false if it cannot by then.  Handles interrupts.
 */
extern bool client_message_room(TimestampTz give_up);

#endif							/* LEASEHOLD_CLIENT_MESSAGE_H */
