/*
 * round.c
 *		A worker's round with the database: one transaction for all that there is to do.
 *
 * Storing a hundred answers and claiming a hundred calls costs one flush.  If
 * the transaction fails, the pieces are done one by one, and the one that cannot
 * be done is put aside with its error; the others lose nothing.
 *
 * What is in memory (finished calls, the queue, who is to be woken) changes on
 * account of a round only after its commit.
 */
#include "postgres.h"
#include "compat.h"

#include "utils/timestamp.h"

#include "answers.h"
#include "claims.h"
#include "command_output.h"
#include "deadlines.h"
#include "due.h"
#include "plugins.h"
#include "queue.h"
#include "round.h"
#include "transaction.h"
#include "woken.h"
#include "worker.h"

#define FAILED_PAUSE_MS		100
#define TROUBLE_PAUSE_MAX_MS 5000

/* What one round does, and what it finds out. */
typedef struct Round
{
	InstallationState state;
	OutputBatch output;
	AnswerBatch answers;
	DueCalls	due;
	Claims		claims;
	Woken		woken;
	TimestampTz next_due;
} Round;

static TimestampTz trouble_until = 0;	/* no rounds before */
static int	trouble_pause_ms = 0;

static void begin(Round *round, InstallationState state, bool look_everywhere);
static void whole_round_work(void *arg);
static void settle(Round *round);
static TimestampTz when_to_come_again(const Round *round);
static TimestampTz run_one_by_one(Round *round);
static TimestampTz pause_after_trouble(bool nothing_works);

TimestampTz
round_run(InstallationState state, bool look_everywhere)
{
	Round		round;

	transaction_fresh_memory();
	if (state == INSTALLATION_UNSUPPORTED)
	{
		/* what is here waits for a version that can take it */
		trouble_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TROUBLE_PAUSE_MAX_MS);
		return DT_NOEND;
	}
	begin(&round, state, look_everywhere);
	if (!transaction_run("applying answers and claiming calls", whole_round_work, &round))
		return run_one_by_one(&round);
	settle(&round);
	return when_to_come_again(&round);
}

static void
begin(Round *round, InstallationState state, bool look_everywhere)
{
	TimestampTz now = GetCurrentTimestamp();

	memset(round, 0, sizeof(*round));
	round->state = state;
	round->next_due = DT_NOEND;
	command_output_collect(&round->output, now);
	answers_collect(&round->answers, now);
	due_begin(&round->due, now, look_everywhere);
	claims_init(&round->claims, now);
	woken_init(&round->woken, OUTPUT_BATCH + ANSWER_BATCH + round->due.limit + round->due.overdue_limit);
}

static void
whole_round_work(void *arg)
{
	Round	   *round = arg;

	plugins_refresh();
	if (round->output.count > 0)
		command_output_apply(&round->output);
	if (round->answers.count > 0)
		answers_apply(&round->answers);
	if (!installation_may_write(round->state))
		return;

	due_read(&round->due);
	if (round->due.timer_count > 0)
		deadlines_fire(round->due.timers, round->due.timer_count, &round->woken);
	if (round->state == INSTALLATION_SERVED)
		claims_take(&round->claims);
	if (!round->due.more)
		round->next_due = due_next(&round->due);
}

/* After the commit. */
static void
settle(Round *round)
{
	TimestampTz again;

	worker.shared->applied_calls += round->answers.count;
	if (installation_may_write(round->state))
		due_was_read(&round->due);
	command_output_settle(&round->output, &round->woken);
	again = answers_settle(&round->answers, &round->woken);
	round->next_due = Min(round->next_due, again);
	again = claims_start(&round->claims);
	round->next_due = Min(round->next_due, again);
	trouble_pause_ms = 0;
	woken_tell(&round->woken);
}

/* Without being woken. */
static TimestampTz
when_to_come_again(const Round *round)
{
	TimestampTz next = round->due.more ? 0 : round->next_due;

	if (round->state == INSTALLATION_SERVED)
	{
		TimestampTz breaker;

		if (queue_has_turn(GetCurrentTimestamp(), &breaker))
			next = 0;
		else if (breaker != 0)
			next = Min(next, breaker);
	}
	return next;
}

/* After the whole failed.  Returns when to try again. */
static TimestampTz
run_one_by_one(Round *round)
{
	bool		lasting = transaction_trouble_is_general() || !transaction_trouble_passes();
	bool		any;

	worker.shared->failed_batches++;
	round->woken.count = 0;		/* the pieces tell of themselves */
	claims_drop(&round->claims);
	any = command_output_one_by_one(&round->output, &round->woken);
	any |= answers_apply_one_by_one(&round->answers, &round->woken);
	any |= deadlines_fire_one_by_one(round->due.timers, round->due.timer_count, &round->woken);
	any |= claims_one_by_one(&round->claims);
	transaction_forget_locks();
	woken_tell(&round->woken);
	return pause_after_trouble(lasting && !any);
}

/*
 * If nothing at all could be done, ever later, and answers that are here or
 * come have to wait until then.
 */
static TimestampTz
pause_after_trouble(bool nothing_works)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!nothing_works)
	{
		trouble_pause_ms = 0;
		return TimestampTzPlusMilliseconds(now, FAILED_PAUSE_MS);
	}
	trouble_pause_ms = Min(Max(trouble_pause_ms * 2, FAILED_PAUSE_MS), TROUBLE_PAUSE_MAX_MS);
	trouble_until = TimestampTzPlusMilliseconds(now, trouble_pause_ms);
	return trouble_until;
}

TimestampTz
round_not_before(void)
{
	return trouble_until;
}

void
round_clock_set_back(TimestampTz now)
{
	/* what is new is due before what was read last */
	due_look_from_start();
	trouble_until = 0;
	answers_wait_no_longer();
	command_output_wait_no_longer();
	queue_clock_set_back(now);
}
