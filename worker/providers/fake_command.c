/*
 * fake_command.c
 *		Commands of the built-in provider for tests.
 *
 * Nothing is run: it knows a few programs, which do what their words say.  A
 * script ("sh -c") is a list of them, separated by semicolons, with words
 * separated by spaces.
 *
 *	echo WORD...		writes the words and a line end
 *	err WORD...			the same to stderr
 *	bytes HEX...		writes each argument's bytes, in a piece of their own
 *	flood BYTES			writes that many, in lines
 *	cat					writes what it gets as input
 *	env					writes its environment, sorted, one variable a line
 *	pwd					writes its working directory
 *	sleep SECONDS		takes that long
 *	exit CODE			ends the command
 *	kill SIGNAL			ends it by that signal
 *	hang				for ever
 *
 * and the faults
 *
 *	refuse				the command cannot be run at all
 *	busy N				the first n tries are told to come again
 *	fail N				the first n tries fail before it began
 *	lose				the answer is lost
 *	vanish				it is not even known whether it began
 *	mute				there is an answer, but it does not tell how it ended
 *	stubborn			from here on, it does not end when it is cancelled
 */
#include "postgres.h"
#include "compat.h"

#include <jansson.h>

#include "command_output.h"
#include "event_loop.h"
#include "fake_command.h"
#include "worker.h"

#define FLOOD_LINE		80

typedef struct FakeCommand
{
	Call	   *call;
	json_t	   *params;
	char	  **steps;			/* each its words */
	int			step_count;
	int			at;
	int64		to_flood;		/* bytes of a flood that are left */
	bool		stubborn;
	EventTimer	pause;
	EventTimer	timeout;
	MemoryContextCallback cleanup;
} FakeCommand;

static void split_into_steps(FakeCommand *state);
static char *join_words(FakeCommand *state);
static void go_on(void *arg);
static bool run_step(FakeCommand *state, char *step);
static bool run_fault(FakeCommand *state, const char *program, const char *argument);
static void write_text(FakeCommand *state, CommandStream stream, const char *text);
static bool write_data(FakeCommand *state, CommandStream stream, const char *data, size_t length);
static void write_bytes(FakeCommand *state, char *words);
static void write_environment(FakeCommand *state);
static bool go_on_with_flood(FakeCommand *state);
static void drained(Call *call);
static void out_of_time(void *arg);
static void ended(FakeCommand *state, CallOutcome outcome, const char *code, const char *message);
static void exited(FakeCommand *state, int code);
static void killed(FakeCommand *state, const char *signal);
static void stop(FakeCommand *state);
static void clean_up(void *arg);

void
fake_command_execute(Call *call)
{
	FakeCommand *state = MemoryContextAllocZero(call->context, sizeof(FakeCommand));
	const json_t *timeout;

	state->call = call;
	state->params = json_loads(call->params, 0, NULL);
	state->pause.fire = go_on;
	state->timeout.fire = out_of_time;
	state->pause.arg = state->timeout.arg = state;
	state->cleanup.func = clean_up;
	state->cleanup.arg = state;
	MemoryContextRegisterResetCallback(call->context, &state->cleanup);
	call->transport = state;
	call->command->drained = drained;
	split_into_steps(state);

	timeout = json_object_get(state->params, "timeoutMs");
	if (json_is_integer(timeout))
		event_loop_set_timer(&state->timeout, json_integer_value(timeout));
	go_on(state);
}

static void
split_into_steps(FakeCommand *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->call->context);
	const char *program = json_string_value(json_object_get(state->params, "command"));
	const json_t *args = json_object_get(state->params, "args");

	if ((strcmp(program, "sh") == 0 || strcmp(program, "bash") == 0) && json_array_size(args) == 2)
	{
		char	   *script = pstrdup(json_string_value(json_array_get(args, 1)));
		size_t		most = 1;
		char	   *save;

		for (const char *at = script; (at = strpbrk(at, ";\n")) != NULL; at++)
			most++;
		state->steps = palloc0(most * sizeof(char *));

		for (char *step = strtok_r(script, ";\n", &save); step != NULL;
			 step = strtok_r(NULL, ";\n", &save))
			state->steps[state->step_count++] = step + strspn(step, " ");
	}
	else
	{
		state->steps = palloc(sizeof(char *));
		state->steps[state->step_count++] = join_words(state);
	}
	MemoryContextSwitchTo(old);
}

static char *
join_words(FakeCommand *state)
{
	const json_t *args = json_object_get(state->params, "args");
	StringInfoData step;
	size_t		i;
	const json_t *word;

	initStringInfo(&step);
	appendStringInfoString(&step, json_string_value(json_object_get(state->params, "command")));
	json_array_foreach(args, i, word)
	{
		appendStringInfo(&step, " %s", json_string_value(word));
	}
	return step.data;
}

/* The next steps, until one takes its time. */
static void
go_on(void *arg)
{
	FakeCommand *state = arg;

	while (state->at < state->step_count)
	{
		if (!run_step(state, pstrdup(state->steps[state->at++])))
			return;
	}
	exited(state, 0);
}

/* False if it ended the command, or will go on later. */
static bool
run_step(FakeCommand *state, char *step)
{
	char	   *words = strchr(step, ' ');

	if (words != NULL)
		*words++ = '\0';
	else
		words = "";
	if (!run_fault(state, step, words))
		return false;
	if (strcmp(step, "echo") == 0 || strcmp(step, "err") == 0)
	{
		CommandStream stream = strcmp(step, "err") == 0 ? STREAM_STDERR : STREAM_STDOUT;

		write_text(state, stream, psprintf("%s\n", words));
	}
	else if (strcmp(step, "bytes") == 0)
		write_bytes(state, words);
	else if (strcmp(step, "flood") == 0)
	{
		state->to_flood = atoll(words);
		return go_on_with_flood(state);
	}
	else if (strcmp(step, "cat") == 0)
	{
		const char *input = json_string_value(json_object_get(state->params, "stdin"));

		write_text(state, STREAM_STDOUT, input ? input : "");
	}
	else if (strcmp(step, "env") == 0)
		write_environment(state);
	else if (strcmp(step, "pwd") == 0)
		write_text(state, STREAM_STDOUT, psprintf("%s\n", json_string_value(json_object_get(state->params, "cwd"))));
	else if (strcmp(step, "sleep") == 0)
	{
		state->call->command->begun = true;
		event_loop_set_timer(&state->pause, (int64) (atof(words) * 1000));
		return false;
	}
	else if (strcmp(step, "exit") == 0)
	{
		exited(state, atoi(words));
		return false;
	}
	else if (strcmp(step, "kill") == 0)
	{
		killed(state, words);
		return false;
	}
	else if (strcmp(step, "hang") == 0)
	{
		state->call->command->begun = true;
		return false;
	}
	return true;
}

/* The same. */
static bool
run_fault(FakeCommand *state, const char *program, const char *argument)
{
	if (strcmp(program, "refuse") == 0)
		ended(state, OUTCOME_FAILED, "command_refused", "the fake provider refuses");
	else if (strcmp(program, "busy") == 0 && state->call->attempt <= atoi(argument))
		ended(state, OUTCOME_THROTTLED, "provider_throttled", "the fake provider is busy");
	else if (strcmp(program, "fail") == 0 && state->call->attempt <= atoi(argument))
		ended(state, OUTCOME_RETRY, "provider_error", "the fake provider fails");
	else if (strcmp(program, "lose") == 0)
	{
		state->call->command->begun = true;
		ended(state, OUTCOME_UNKNOWN, "provider_unreachable", "the fake provider's answer was lost");
	}
	else if (strcmp(program, "vanish") == 0)
		ended(state, OUTCOME_UNKNOWN, "provider_unreachable", "the fake provider did not answer");
	else if (strcmp(program, "mute") == 0)
		ended(state, OUTCOME_OK, NULL, "");
	else
	{
		state->stubborn |= strcmp(program, "stubborn") == 0;
		return true;
	}
	return false;
}

static void
write_text(FakeCommand *state, CommandStream stream, const char *text)
{
	(void) write_data(state, stream, text, strlen(text));
}

/* False if there is no room for more. */
static bool
write_data(FakeCommand *state, CommandStream stream, const char *data, size_t length)
{
	state->call->command->begun = true;
	return command_output_add(state->call, stream, data, length);
}

static void
write_bytes(FakeCommand *state, char *words)
{
	char	   *save;

	for (char *word = strtok_r(words, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save))
	{
		int			length = strlen(word) / 2;
		char	   *bytes = palloc(length + 1);

		for (int i = 0; i < length; i++)
		{
			char		digits[3] = {word[2 * i], word[2 * i + 1], '\0'};

			bytes[i] = (char) strtol(digits, NULL, 16);
		}
		(void) write_data(state, STREAM_STDOUT, bytes, length);
	}
}

static void
write_environment(FakeCommand *state)
{
	char	   *text = json_dumps(json_object_get(state->params, "env"), JSON_SORT_KEYS | JSON_COMPACT);
	json_t	   *sorted = json_loads(text, 0, NULL);
	const char *name;
	json_t	   *value;

	json_object_foreach(sorted, name, value)
	{
		write_text(state, STREAM_STDOUT, psprintf("%s=%s\n", name, json_string_value(value)));
	}
	json_decref(sorted);
	free(text);
}

static bool
go_on_with_flood(FakeCommand *state)
{
	char		line[FLOOD_LINE];

	memset(line, 'x', sizeof(line));
	line[FLOOD_LINE - 1] = '\n';
	while (state->to_flood > 0)
	{
		int			part = Min(state->to_flood, FLOOD_LINE);

		state->to_flood -= part;
		if (!write_data(state, STREAM_STDOUT, line, part) && state->to_flood > 0)
			return false;
	}
	return true;
}

static void
drained(Call *call)
{
	FakeCommand *state = call->transport;

	if (state->to_flood > 0 && go_on_with_flood(state))
		event_loop_set_timer(&state->pause, 0);
}

static void
out_of_time(void *arg)
{
	FakeCommand *state = arg;

	state->call->command->timed_out = true;
	killed(state, "SIGKILL");
}

static void
exited(FakeCommand *state, int code)
{
	Command    *command = state->call->command;

	command->begun = command->has_exit_code = true;
	command->exit_code = code;
	ended(state, OUTCOME_OK, NULL, "");
}

static void
killed(FakeCommand *state, const char *signal)
{
	Command    *command = state->call->command;

	command->begun = true;
	strlcpy(command->signal, signal, sizeof(command->signal));
	ended(state, OUTCOME_OK, NULL, "");
}

static void
ended(FakeCommand *state, CallOutcome outcome, const char *code, const char *message)
{
	stop(state);
	call_set_outcome(state->call, outcome, code, "%s", message);
	worker_call_finished(state->call);
}

static void
stop(FakeCommand *state)
{
	event_loop_cancel_timer(&state->pause);
	event_loop_cancel_timer(&state->timeout);
	state->to_flood = 0;
}

void
fake_command_abandon(Call *call)
{
	stop(call->transport);
}

void
fake_command_cancel(Call *call)
{
	Call	   *target = command_find(&call->key);
	FakeCommand *state = target != NULL ? target->transport : NULL;

	if (state == NULL)
		call_set_outcome(call, OUTCOME_GONE, "resource_gone", "the fake provider has no such command");
	else
	{
		if (!state->stubborn)
		{
			target->command->cancelled = true;
			killed(state, "SIGTERM");
		}
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	}
	worker_call_finished(call);
}

static void
clean_up(void *arg)
{
	FakeCommand *state = arg;

	stop(state);
	json_decref(state->params);
}
