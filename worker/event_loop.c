/*
 * event_loop.c
 *		One epoll descriptor nests all of a worker's own descriptors; the wait
 *		itself is the server's, so that latch, interrupts and the postmaster's
 *		death are seen at any moment.
 *
 * The WaitEventSet is made once: WaitLatchOrSocket() would make and drop one,
 * with its epoll descriptor, at every wait.
 */
#include "postgres.h"
#include "compat.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/wait_event.h"

#include "event_loop.h"

#define MAX_READY		256
#define MAX_SLICES		16

struct EventWatch
{
	int			fd;
	EventReady	ready;
	void	   *arg;
	bool		removed;
	EventWatch *next_removed;
};

static int	mux_fd = -1;
static WaitEventSet *wait_set;
static pairingheap *timers;
static EventWatch *removed_watches = NULL;	/* freed when nobody can look at them */

static int	timer_order(const pairingheap_node *a, const pairingheap_node *b, void *arg);
static void run_ready_descriptors(void);
static void run_due_timers(void);
static int64 until_next_timer(int64 timeout_ms);

void
event_loop_init(void)
{
	MemoryContext old;

	ReserveExternalFD();
	mux_fd = epoll_create1(EPOLL_CLOEXEC);
	if (mux_fd < 0)
		ereport(ERROR,
				(errcode_for_socket_access(), errmsg("could not create an epoll descriptor: %m")));

	wait_set = CreateWaitEventSet(TopMemoryContext, 3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, mux_fd, NULL, NULL);

	old = MemoryContextSwitchTo(TopMemoryContext);
	timers = pairingheap_allocate(timer_order, NULL);
	MemoryContextSwitchTo(old);
}

EventWatch *
event_loop_add(int fd, uint32 events, EventReady ready, void *arg)
{
	EventWatch *watch = malloc(sizeof(EventWatch));
	struct epoll_event event;

	if (watch == NULL)
		return NULL;
	watch->fd = fd;
	watch->ready = ready;
	watch->arg = arg;
	watch->removed = false;
	event.events = events;
	event.data.ptr = watch;
	if (epoll_ctl(mux_fd, EPOLL_CTL_ADD, fd, &event) != 0)
	{
		free(watch);
		return NULL;
	}
	return watch;
}

bool
event_loop_change(EventWatch *watch, uint32 events)
{
	struct epoll_event event;

	event.events = events;
	event.data.ptr = watch;
	return epoll_ctl(mux_fd, EPOLL_CTL_MOD, watch->fd, &event) == 0;
}

void
event_loop_remove(EventWatch *watch)
{
	/* the descriptor may be closed already, and so be gone from the set */
	(void) epoll_ctl(mux_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	watch->removed = true;
	watch->next_removed = removed_watches;
	removed_watches = watch;
}

int64
event_loop_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

void
event_loop_set_timer(EventTimer *timer, int64 after_ms)
{
	event_loop_cancel_timer(timer);
	timer->at = event_loop_clock() + after_ms * 1000;
	timer->set = true;
	pairingheap_add(timers, &timer->node);
}

void
event_loop_cancel_timer(EventTimer *timer)
{
	if (timer->set)
		pairingheap_remove(timers, &timer->node);
	timer->set = false;
}

void
event_loop_wait(int64 timeout_ms, uint32 wait_event)
{
	WaitEvent	events[3];
	int			count;

	Assert(!IsTransactionState());
	Assert(!HaveRegisteredOrActiveSnapshot());

	count = WaitEventSetWait(wait_set, until_next_timer(timeout_ms), events, lengthof(events), wait_event);
	for (int i = 0; i < count; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (events[i].events & WL_SOCKET_READABLE)
			run_ready_descriptors();
	}
	/* there is no statement to cancel here */
	QueryCancelPending = false;
	if (ShutdownRequestPending)
		return;
	CHECK_FOR_INTERRUPTS();
	run_due_timers();
}

/*
 * A handler may remove watches that come later in the same batch: they are
 * passed over, and freed when the batch is through.
 */
static void
run_ready_descriptors(void)
{
	for (int slice = 0; slice < MAX_SLICES; slice++)
	{
		struct epoll_event ready[MAX_READY];
		int			count = epoll_wait(mux_fd, ready, MAX_READY, 0);

		if (count < 0 && errno != EINTR)
			ereport(ERROR,
					(errcode_for_socket_access(), errmsg("could not wait for descriptors: %m")));
		for (int i = 0; i < count; i++)
		{
			EventWatch *watch = ready[i].data.ptr;

			if (!watch->removed)
				watch->ready(watch->fd, ready[i].events, watch->arg);
		}
		while (removed_watches != NULL)
		{
			EventWatch *watch = removed_watches;

			removed_watches = watch->next_removed;
			free(watch);
		}
		if (count < MAX_READY)
			break;
	}
}

static void
run_due_timers(void)
{
	int64		now = event_loop_clock();

	while (!pairingheap_is_empty(timers))
	{
		EventTimer *timer = pairingheap_container(EventTimer, node, pairingheap_first(timers));

		if (timer->at > now)
			break;
		pairingheap_remove_first(timers);
		timer->set = false;
		timer->fire(timer->arg);
	}
}

static int64
until_next_timer(int64 timeout_ms)
{
	EventTimer *timer;
	int64		left;

	if (pairingheap_is_empty(timers))
		return timeout_ms;
	timer = pairingheap_container(EventTimer, node, pairingheap_first(timers));
	left = (timer->at - event_loop_clock() + 999) / 1000;
	left = Max(left, 0);
	return timeout_ms < 0 ? left : Min(timeout_ms, left);
}

static int
timer_order(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		at_a = pairingheap_const_container(EventTimer, node, a)->at;
	int64		at_b = pairingheap_const_container(EventTimer, node, b)->at;

	/* the heap's first is its greatest */
	return at_a < at_b ? 1 : at_a > at_b ? -1 : 0;
}
