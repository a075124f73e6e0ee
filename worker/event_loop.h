/*
 * event_loop.h
 *		Waiting for sockets, timers and the server's own events at once.
 */
#ifndef LEASEHOLD_EVENT_LOOP_H
#define LEASEHOLD_EVENT_LOOP_H

#include "lib/pairingheap.h"
#include "utils/timestamp.h"

/* events: EPOLLIN and so on */
typedef void (*EventReady) (int fd, uint32 events, void *arg);

typedef struct EventWatch EventWatch;

/* A timer belongs to its user, and must stay in place while it is set. */
typedef struct EventTimer
{
	pairingheap_node node;
	int64		at;				/* by event_loop_clock() */
	bool		set;
	void		(*fire) (void *arg);
	void	   *arg;
} EventTimer;

extern void event_loop_init(void);

/*
 * Watch a descriptor.  These may be called from foreign callbacks: they use
 * malloc and raise no errors (NULL or false if epoll or malloc refuses).  A
 * watch is gone at once, even if its descriptor was found ready just now.
 */
extern EventWatch *event_loop_add(int fd, uint32 events, EventReady ready, void *arg);
extern bool event_loop_change(EventWatch *watch, uint32 events);
extern void event_loop_remove(EventWatch *watch);

/* A clock in microseconds that nobody can set. */
extern int64 event_loop_clock(void);

extern void event_loop_set_timer(EventTimer *timer, int64 after_ms);
extern void event_loop_cancel_timer(EventTimer *timer);

/*
 * Waits until something is ready, the latch is set, or the time is over (-1:
 * none), and runs what is ready.  Must not be called within a transaction.
 */
extern void event_loop_wait(int64 timeout_ms, uint32 wait_event);

#endif							/* LEASEHOLD_EVENT_LOOP_H */
