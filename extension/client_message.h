/*
 * client_message.h
 *		Messages for the client of this session alone.
 */
#ifndef LEASEHOLD_CLIENT_MESSAGE_H
#define LEASEHOLD_CLIENT_MESSAGE_H

/*
 * Sends an INFO, which clients show whatever client_min_messages says.  It is
 * never in the server log, whatever log_min_messages says, and no other
 * extension sees it.  What the client's encoding has not becomes a question mark.
 */
extern void client_message(const char *text);

#endif							/* LEASEHOLD_CLIENT_MESSAGE_H */
