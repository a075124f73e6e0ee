/*
 * bubblewrap_command.c
 *		Commands in sandboxes on this host.
 *
 * Each command has namespaces of its own, within those of the lease, of which it
 * shares the workspace with its neighbours.  The process that we start enters the
 * lease's namespaces and runs bubblewrap as the first process of a namespace; its
 * child is the first process of the command's.  When one of them dies, or this
 * worker, at whatever moment, the kernel ends everything below.  What is run and
 * with what environment is handed over in descriptors.
 *
 * A command that is to end gets SIGTERM, and GRACE_MS later its sandbox is killed.
 */
#include "postgres.h"
#include "compat.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "bubblewrap.h"
#include "child_process.h"
#include "command_output.h"
#include "event_loop.h"
#include "sandbox_exposure.h"
#include "sandbox_host.h"
#include "sandbox_request.h"
#include "settings.h"
#include "worker.h"

#define GRACE_MS			1000
#define DROPPED_PAUSE_MS	10	/* between readings of output that is not kept any more */
#define READ_SIZE			65536
#define STATUS_SIZE			2000
#define SANDBOX_USER		"1000"
#define MB					(1024 * 1024)
#define DEFAULT_MEMORY_MB	2048
#define DEFAULT_PROCESSES	256

/* Descriptors of the program that is started, and what is at the other end. */
#define PASSWD_FD			6
#define GROUP_FD			7
#define HOSTS_FD			8
#define HELPER_FD			9
#define CHILD_FDS			10

typedef struct SandboxCommand
{
	Call	   *call;
	char		path[MAXPGPATH];	/* of the sandbox */
	int			pidfd;			/* of bubblewrap; -1: ended */
	EventWatch *pid_watch;
	int			output_fd[2];	/* -1: closed */
	EventWatch *output_watch[2];	/* NULL: closed, or there is no room */
	int			status_fd;		/* the first process of the sandbox; -1: it is gone */
	EventWatch *status_watch;
	char		status[STATUS_SIZE];	/* what it has said */
	int			status_length;
	EventTimer	timeout;
	EventTimer	grace;
	EventTimer	again;			/* to look whether it is over */
	EventTimer	pause;			/* until more is read of what is not kept */
	int64		rest[2];		/* bytes that were in the pipes at its end; -1: it has not ended */
	bool		out_of_time;	/* it was told to end since its time is over */
	bool		cancelled;		/* or since somebody wants it */
	MemoryContextCallback cleanup;
} SandboxCommand;

static void start(SandboxCommand *state, const json_t *params, const SandboxHolder *holder);
static bool open_channels(SandboxCommand *state, const json_t *params, int *fds);
static int	bubblewrap_arguments(const SandboxCommand *state);
static void add_words(StringInfo list, const char *const *words, int count);
static void add_exposed(const char *path, void *arg);
static void add_mount(StringInfo list, const SandboxCommand *state, const char *part, const char *target);
static int	request(const json_t *params);
static void add_limit(StringInfo list, const json_t *params, const char *name, int64 otherwise, int64 most,
					  int64 unit);
static void add_argv(StringInfo list, const json_t *params, const char **script);
static void add_environment(StringInfo list, const json_t *params, const char *script);
static void add_string(StringInfo list, const char *string);
static int	text_file(const char *text);
static bool watch_all(SandboxCommand *state);
static void output_ready(int fd, uint32 events, void *arg);
static void drained(Call *call);
static void pause_over(void *arg);
static void close_output(SandboxCommand *state, CommandStream stream);
static void status_ready(int fd, uint32 events, void *arg);
static void close_status(SandboxCommand *state);
static void process_ended(int fd, uint32 events, void *arg);
static void finish_if_over(void *arg);
static bool take_rest(SandboxCommand *state, CommandStream stream);
static bool take_output(SandboxCommand *state, CommandStream stream, const char *data, size_t length);
static void judge(SandboxCommand *state);
static const char *said(const SandboxCommand *state, const char *word);
static void out_of_time(void *arg);
static void tell_to_end(SandboxCommand *state);
static void out_of_grace(void *arg);
static void end_at_once(SandboxCommand *state);
static void not_started(Call *call, CallOutcome outcome, const char *code, const char *message);
static void cancel_timers(SandboxCommand *state);
static bool has_ended(const SandboxCommand *state);
static void clean_up(void *arg);

void
bubblewrap_execute(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);
	SandboxCommand *state = MemoryContextAllocZero(call->context, sizeof(SandboxCommand));
	const char *installation = json_string_value(json_object_get(json_object_get(params, "leasehold"), "installationId"));
	const char *id = json_string_value(json_object_get(json_object_get(params, "lease"), "providerLeaseId"));
	SandboxHolder holder;
	SandboxState found;
	const char *code;
	const char *message;
	CallOutcome outcome;
	StringInfoData problem;

	state->call = call;
	state->pidfd = state->output_fd[0] = state->output_fd[1] = state->status_fd = -1;
	state->timeout.fire = out_of_time;
	state->grace.fire = out_of_grace;
	state->again.fire = finish_if_over;
	state->pause.fire = pause_over;
	state->timeout.arg = state->grace.arg = state->again.arg = state->pause.arg = state;
	state->rest[0] = state->rest[1] = -1;
	state->cleanup.func = clean_up;
	state->cleanup.arg = state;
	MemoryContextRegisterResetCallback(call->context, &state->cleanup);
	call->transport = state;
	call->command->drained = drained;

	initStringInfo(&problem);
	found = bubblewrap_directory(installation, id ? id : "", state->path) ? sandbox_holder_find(state->path, &holder) : SANDBOX_GONE;
	if (!setting_bubblewrap)
		not_started(call, OUTCOME_FAILED, "provider_forbidden", "leasehold.bubblewrap is off");
	else if (found == SANDBOX_THERE && sandbox_exposure_problem(&problem))
		not_started(call, OUTCOME_RETRY, "sandbox_unavailable", problem.data);
	else if (found == SANDBOX_THERE)
		start(state, params, &holder);
	else
	{
		outcome = bubblewrap_missing(found, &code, &message);
		not_started(call, outcome, code, message);
	}
	json_decref(params);
}

/* Starting it */

static void
start(SandboxCommand *state, const json_t *params, const SandboxHolder *holder)
{
	char		pid[32];
	char		began[32];
	char		parent[32];
	StringInfoData processes;
	char	   *argv[] = {(char *) sandbox_host_helper(), "enter", pid, began, NULL, parent,
	setting_bubblewrap_program, "--args", CppAsString2(SANDBOX_ARGS_FD), "--", "/.leasehold", "init", NULL};
	int			fds[CHILD_FDS];
	const char *problem = "no descriptors are left";
	const json_t *timeout = json_object_get(params, "timeoutMs");

	snprintf(pid, sizeof(pid), "%d", (int) holder->pid);
	snprintf(began, sizeof(began), "%llu", holder->began);
	snprintf(parent, sizeof(parent), "%d", MyProcPid);
	initStringInfo(&processes);
	add_limit(&processes, params, "processes", DEFAULT_PROCESSES, setting_bubblewrap_max_processes, 1);
	argv[4] = processes.data;

	if (open_channels(state, params, fds))
		state->pidfd = child_process_start(argv, fds, CHILD_FDS, &problem);
	for (int i = 0; i < CHILD_FDS; i++)
	{
		if (fds[i] >= 0)
			close(fds[i]);
	}
	if (state->pidfd < 0 || !watch_all(state))
	{
		clean_up(state);
		not_started(state->call, OUTCOME_RETRY, "sandbox_unavailable", problem ? problem : "no descriptors are left");
		return;
	}
	if (json_is_number(timeout))
		event_loop_set_timer(&state->timeout, (int64) json_number_value(timeout));
}

/* Our ends go into the state, the child's into fds (-1: none). */
static bool
open_channels(SandboxCommand *state, const json_t *params, int *fds)
{
	const char *input = json_string_value(json_object_get(params, "stdin"));
	int			pair[2];

	memset(fds, -1, CHILD_FDS * sizeof(int));
	fds[0] = input != NULL ? text_file(input) : open("/dev/null", O_RDONLY | O_CLOEXEC);
	for (int stream = STREAM_STDOUT; stream <= STREAM_STDERR; stream++)
	{
		if (pipe2(pair, O_CLOEXEC) != 0)
			return false;
		state->output_fd[stream] = pair[0];
		fds[1 + stream] = pair[1];
		(void) fcntl(pair[0], F_SETFL, O_NONBLOCK);
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
		return false;
	state->status_fd = pair[0];
	(void) fcntl(pair[0], F_SETFL, O_NONBLOCK);
	fds[SANDBOX_STATUS_FD] = pair[1];
	fds[SANDBOX_ARGS_FD] = bubblewrap_arguments(state);
	fds[SANDBOX_REQUEST_FD] = request(params);
	fds[PASSWD_FD] = text_file("sandbox:x:" SANDBOX_USER ":" SANDBOX_USER "::/workspace:/bin/sh\n"
							   "nobody:x:65534:65534::/:/bin/false\n");
	fds[GROUP_FD] = text_file("sandbox:x:" SANDBOX_USER ":\nnogroup:x:65534:\n");
	fds[HELPER_FD] = open(sandbox_host_helper(), O_RDONLY | O_CLOEXEC);
	fds[HOSTS_FD] = text_file("127.0.0.1 localhost sandbox\n::1 localhost\n");
	for (int i = 0; i < CHILD_FDS; i++)
	{
		if (fds[i] < 0)
			return false;
	}
	return true;
}

/* What of the host is seen, and how: see bwrap(1). */
static int
bubblewrap_arguments(const SandboxCommand *state)
{
	static const char *const before[] = {
		"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--unshare-net",
		"--disable-userns", "--die-with-parent", "--as-pid-1", "--new-session", "--cap-drop", "ALL", "--clearenv",
		"--hostname", "sandbox", "--uid", SANDBOX_USER, "--gid", SANDBOX_USER,
	};
	static const char *const after[] = {
		"--ro-bind-data", CppAsString2(PASSWD_FD), "/etc/passwd", "--ro-bind-data", CppAsString2(GROUP_FD), "/etc/group",
		"--ro-bind-data", CppAsString2(HOSTS_FD), "/etc/hosts", "--proc", "/proc", "--dev", "/dev",
	};

	/* of the host, and nobody's business */
	static const char *const masked[] = {"/proc/cmdline", "/proc/keys", "/proc/key-users"};

	/*
	 * the first process: its content, so that nothing tells where the host
	 * has it
	 */
	static const char *const last[] = {
		"--perms", "0555", "--ro-bind-data", CppAsString2(HELPER_FD), "/.leasehold",
		"--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/",
	};
	StringInfoData list;

	initStringInfo(&list);
	add_words(&list, before, lengthof(before));
	sandbox_exposed(add_exposed, &list);
	add_words(&list, after, lengthof(after));
	/* all of them count for the size of the workspace */
	add_mount(&list, state, "shm", "/dev/shm");
	add_mount(&list, state, "tmp", "/tmp");
	add_mount(&list, state, "work", "/workspace");
	for (int i = 0; i < (int) lengthof(masked); i++)
	{
		const char *const mask[] = {"--ro-bind", "/dev/null", masked[i]};

		if (access(masked[i], F_OK) == 0)
			add_words(&list, mask, lengthof(mask));
	}
	add_words(&list, last, lengthof(last));
	return child_process_memory_file("leasehold arguments", list.data, list.len);
}

static void
add_words(StringInfo list, const char *const *words, int count)
{
	for (int i = 0; i < count; i++)
		add_string(list, words[i]);
}

/* A symbolic link, such as /bin where it is /usr/bin, stays one. */
static void
add_exposed(const char *path, void *arg)
{
	char		target[MAXPGPATH];
	ssize_t		length = readlink(path, target, sizeof(target) - 1);

	if (length > 0)
	{
		target[length] = '\0';
		add_string(arg, "--symlink");
		add_string(arg, target);
	}
	else
	{
		add_string(arg, "--ro-bind-try");
		add_string(arg, path);
	}
	add_string(arg, path);
}

static void
add_mount(StringInfo list, const SandboxCommand *state, const char *part, const char *target)
{
	add_string(list, "--bind");
	appendStringInfo(list, "%s/workspace/%s", state->path, part);
	appendStringInfoChar(list, '\0');
	add_string(list, target);
}

/* The command, as sandbox/leasehold_sandbox.c reads it. */
static int
request(const json_t *params)
{
	StringInfoData list;
	const char *script = NULL;

	initStringInfo(&list);
	add_limit(&list, params, "memoryMb", DEFAULT_MEMORY_MB, setting_bubblewrap_max_memory, MB);
	add_limit(&list, params, "fileMb", 0, PG_INT32_MAX, MB);
	add_limit(&list, params, "cpuSeconds", 0, PG_INT32_MAX, 1);
	add_string(&list, "0");		/* no core files */
	add_string(&list, json_string_value(json_object_get(params, "cwd")));
	add_argv(&list, params, &script);
	add_environment(&list, params, script);
	return child_process_memory_file("leasehold command", list.data, list.len);
}

/* That of the configuration, if it is not more than an administrator allows; without one, otherwise; 0: none. */
static void
add_limit(StringInfo list, const json_t *params, const char *name, int64 otherwise, int64 most, int64 unit)
{
	int64		limit = bubblewrap_number(params, name, otherwise);

	if (limit > 0)
		appendStringInfo(list, INT64_FORMAT, Min(limit, most) * unit);
	appendStringInfoChar(list, '\0');
}

/*
 * A shell's script would be seen in the list of processes, so it is handed over
 * in a variable that the shell forgets before it begins.
 */
static void
add_argv(StringInfo list, const json_t *params, const char **script)
{
	const char *program = json_string_value(json_object_get(params, "command"));
	const json_t *args = json_object_get(params, "args");
	size_t		i;
	const json_t *arg;

	appendStringInfo(list, "%d", (int) json_array_size(args) + 1);
	appendStringInfoChar(list, '\0');
	add_string(list, program);
	if ((strcmp(program, "sh") == 0 || strcmp(program, "bash") == 0) && json_array_size(args) == 2 &&
		strcmp(json_string_value(json_array_get(args, 0)), "-c") == 0)
	{
		*script = json_string_value(json_array_get(args, 1));
		add_string(list, "-c");
		add_string(list, "eval \"unset LEASEHOLD_SCRIPT; $LEASEHOLD_SCRIPT\"");
		return;
	}
	json_array_foreach(args, i, arg)
	{
		add_string(list, json_string_value(arg));
	}
}

static void
add_environment(StringInfo list, const json_t *params, const char *script)
{
	static const char *const defaults[][2] = {
		{"PATH", "/usr/local/bin:/usr/bin:/bin"}, {"HOME", "/workspace"}, {"USER", "sandbox"}, {"LOGNAME", "sandbox"},
		{"SHELL", "/bin/sh"}, {"LANG", "C.UTF-8"}, {"TMPDIR", "/tmp"},
	};
	json_t	   *env = json_object_get(params, "env");
	const char *name;
	json_t	   *value;

	for (int i = 0; i < (int) lengthof(defaults); i++)
	{
		if (json_object_get(env, defaults[i][0]) == NULL)
		{
			appendStringInfo(list, "%s=%s", defaults[i][0], defaults[i][1]);
			appendStringInfoChar(list, '\0');
		}
	}
	json_object_foreach(env, name, value)
	{
		appendStringInfo(list, "%s=%s", name, json_string_value(value));
		appendStringInfoChar(list, '\0');
	}
	if (script != NULL)
	{
		appendStringInfo(list, "LEASEHOLD_SCRIPT=%s", script);
		appendStringInfoChar(list, '\0');
	}
}

static void
add_string(StringInfo list, const char *string)
{
	appendBinaryStringInfo(list, string, strlen(string) + 1);
}

static int
text_file(const char *text)
{
	return child_process_memory_file("leasehold file", text, strlen(text));
}

/* While it runs */

static bool
watch_all(SandboxCommand *state)
{
	state->pid_watch = event_loop_add(state->pidfd, EPOLLIN, process_ended, state);
	state->status_watch = event_loop_add(state->status_fd, EPOLLIN, status_ready, state);
	drained(state->call);
	return state->pid_watch != NULL && state->status_watch != NULL && state->output_watch[STREAM_STDOUT] != NULL &&
		state->output_watch[STREAM_STDERR] != NULL;
}

/* There is room for output, again or in the beginning. */
static void
drained(Call *call)
{
	SandboxCommand *state = call->transport;

	if (has_ended(state))
	{
		/* not here: this is no moment to end a call */
		event_loop_set_timer(&state->again, 0);
		return;
	}

	for (int stream = STREAM_STDOUT; stream <= STREAM_STDERR; stream++)
	{
		if (state->output_fd[stream] >= 0 && state->output_watch[stream] == NULL)
			state->output_watch[stream] = event_loop_add(state->output_fd[stream], EPOLLIN, output_ready, state);
	}
}

static void
output_ready(int fd, uint32 events, void *arg)
{
	SandboxCommand *state = arg;
	CommandStream stream = fd == state->output_fd[STREAM_STDOUT] ? STREAM_STDOUT : STREAM_STDERR;
	char		data[READ_SIZE];
	ssize_t		length = read(fd, data, sizeof(data));

	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (length <= 0)
		close_output(state, stream);
	else
		(void) take_output(state, stream, data, length);
	finish_if_over(state);
}

/* False if there is no room for more. */
static bool
take_output(SandboxCommand *state, CommandStream stream, const char *data, size_t length)
{
	bool		dropped = state->call->command->truncated;

	if (command_output_add(state->call, stream, data, length) && !dropped)
		return true;
	if (dropped && has_ended(state))
		return true;
	if (dropped)
		event_loop_set_timer(&state->pause, DROPPED_PAUSE_MS);
	/* a pipe that nobody reads stops who writes */
	for (int s = STREAM_STDOUT; s <= STREAM_STDERR; s++)
	{
		if (state->output_watch[s] != NULL)
			event_loop_remove(state->output_watch[s]);
		state->output_watch[s] = NULL;
	}
	return false;
}

static void
pause_over(void *arg)
{
	drained(((SandboxCommand *) arg)->call);
}

static void
close_output(SandboxCommand *state, CommandStream stream)
{
	if (state->output_watch[stream] != NULL)
		event_loop_remove(state->output_watch[stream]);
	state->output_watch[stream] = NULL;
	if (state->output_fd[stream] >= 0)
		close(state->output_fd[stream]);
	state->output_fd[stream] = -1;
}

static void
status_ready(int fd, uint32 events, void *arg)
{
	SandboxCommand *state = arg;
	int			room = STATUS_SIZE - 1 - state->status_length;
	ssize_t		length = room > 0 ? read(fd, state->status + state->status_length, room) : 0;

	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (length <= 0)
		close_status(state);
	else
		state->status_length += length;
	state->status[state->status_length] = '\0';
	if (said(state, "begun") != NULL)
		state->call->command->begun = true;
	finish_if_over(state);
}

static void
close_status(SandboxCommand *state)
{
	if (state->status_watch != NULL)
		event_loop_remove(state->status_watch);
	state->status_watch = NULL;
	if (state->status_fd >= 0)
		close(state->status_fd);
	state->status_fd = -1;
}

static void
process_ended(int fd, uint32 events, void *arg)
{
	SandboxCommand *state = arg;

	event_loop_remove(state->pid_watch);
	state->pid_watch = NULL;
	child_process_reap(state->pidfd);
	state->pidfd = -1;
	finish_if_over(state);
}

/* When the process is gone, and all that it said and wrote is read. */
static void
finish_if_over(void *arg)
{
	SandboxCommand *state = arg;

	if (!has_ended(state) || !take_rest(state, STREAM_STDOUT) || !take_rest(state, STREAM_STDERR))
		return;
	cancel_timers(state);
	judge(state);
	worker_call_finished(state->call);
}

static bool
has_ended(const SandboxCommand *state)
{
	return state->pidfd < 0 && state->status_fd < 0;
}

/*
 * What is in a pipe after the end of all who were to write to it; false if it has
 * to wait for room.  Another command may have been given a descriptor of it: what
 * comes later is not this command's.
 */
static bool
take_rest(SandboxCommand *state, CommandStream stream)
{
	char		data[READ_SIZE];
	int			left = 0;

	if (state->output_fd[stream] < 0)
		return true;
	if (state->rest[stream] < 0)
	{
		(void) ioctl(state->output_fd[stream], FIONREAD, &left);
		state->rest[stream] = left;
	}
	while (state->rest[stream] > 0)
	{
		ssize_t		length = read(state->output_fd[stream], data, Min(sizeof(data), (size_t) state->rest[stream]));

		if (length < 0 && errno == EINTR)
			continue;
		if (length <= 0)
			break;
		state->rest[stream] -= length;
		if (!take_output(state, stream, data, length))
			return false;
	}
	close_output(state, stream);
	return true;
}

static void
judge(SandboxCommand *state)
{
	Call	   *call = state->call;
	Command    *command = call->command;
	const char *exit_code = said(state, "exit ");
	const char *signal_number = said(state, "signal ");
	const char *error = said(state, "error ");

	if (said(state, "gone") != NULL)
	{
		const char *code;
		const char *message;
		CallOutcome outcome = bubblewrap_missing(SANDBOX_GONE, &code, &message);

		call_set_outcome(call, outcome, code, "%s", message);
		return;
	}
	if (error != NULL)
	{
		call_set_outcome(call, OUTCOME_FAILED, "command_not_started", "%.*s", (int) strcspn(error, "\n"), error);
		return;
	}
	if (!command->begun)
	{
		if (state->cancelled || state->out_of_time)
		{
			command->cancelled = state->cancelled;
			command->timed_out = state->out_of_time;
			call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
		}
		else
			call_set_outcome(call, OUTCOME_FAILED, "sandbox_failed", "the sandbox could not be entered; what bubblewrap says of it is in stderr");
		return;
	}
	if (exit_code != NULL)
	{
		command->has_exit_code = true;
		command->exit_code = atoi(exit_code);
	}
	else
	{
		/* one that took the sandbox with it is not told of */
		const char *name = sigabbrev_np(signal_number != NULL ? atoi(signal_number) : SIGKILL);

		snprintf(command->signal, sizeof(command->signal), "SIG%s", name ? name : "UNKNOWN");
	}
	/* it may have come to a good end just before */
	if (exit_code == NULL || command->exit_code != 0)
	{
		command->timed_out = state->out_of_time;
		command->cancelled = state->cancelled && !state->out_of_time;
	}
	call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
}

/* What follows a word at the beginning of a line, or NULL. */
static const char *
said(const SandboxCommand *state, const char *word)
{
	const char *line = state->status;

	while (line != NULL && *line != '\0')
	{
		if (strncmp(line, word, strlen(word)) == 0 && strchr(line, '\n') != NULL)
			return line + strlen(word);
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	return NULL;
}

/* Ending it */

static void
out_of_time(void *arg)
{
	SandboxCommand *state = arg;

	state->out_of_time = true;
	tell_to_end(state);
}

void
bubblewrap_cancel(Call *call)
{
	Call	   *target = command_find(&call->key);
	SandboxCommand *state = target != NULL ? target->transport : NULL;

	if (state == NULL)
		/* it ended with the worker that had it */
		call_set_outcome(call, OUTCOME_GONE, "resource_gone", "the command has ended");
	else
	{
		state->cancelled = true;
		tell_to_end(state);
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	}
	worker_call_finished(call);
}

static void
tell_to_end(SandboxCommand *state)
{
	unsigned char wanted = SIGTERM;

	if (state->grace.set)
		return;
	if (state->pidfd < 0 || state->status_fd < 0 || !state->call->command->begun || send(state->status_fd, &wanted, 1, MSG_NOSIGNAL) != 1)
		end_at_once(state);
	else
		event_loop_set_timer(&state->grace, GRACE_MS);
}

static void
out_of_grace(void *arg)
{
	end_at_once(arg);
}

static void
end_at_once(SandboxCommand *state)
{
	if (state->pidfd >= 0)
		(void) syscall(SYS_pidfd_send_signal, state->pidfd, SIGKILL, NULL, 0);
	/* the first process of the sandbox ends when nobody listens */
	else if (state->status_fd >= 0)
		(void) shutdown(state->status_fd, SHUT_RDWR);
}

void
bubblewrap_end_commands(const char *path)
{
	dlist_iter	iter;

	dlist_foreach(iter, &worker.out)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);
		SandboxCommand *state = call->transport;

		if (call->method == METHOD_EXECUTE && state != NULL && strcmp(call->provider, "bubblewrap") == 0 &&
			strcmp(state->path, path) == 0)
		{
			state->cancelled = true;
			end_at_once(state);
		}
	}
}

void
bubblewrap_abandon(Call *call)
{
	clean_up(call->transport);
}

static void
not_started(Call *call, CallOutcome outcome, const char *code, const char *message)
{
	call_set_outcome(call, outcome, code, "%s", message);
	worker_call_finished(call);
}

static void
clean_up(void *arg)
{
	SandboxCommand *state = arg;

	cancel_timers(state);
	if (state->pid_watch != NULL)
		event_loop_remove(state->pid_watch);
	state->pid_watch = NULL;
	if (state->pidfd >= 0)
		child_process_kill(state->pidfd);
	state->pidfd = -1;
	close_status(state);
	close_output(state, STREAM_STDOUT);
	close_output(state, STREAM_STDERR);
}

static void
cancel_timers(SandboxCommand *state)
{
	event_loop_cancel_timer(&state->timeout);
	event_loop_cancel_timer(&state->grace);
	event_loop_cancel_timer(&state->again);
	event_loop_cancel_timer(&state->pause);
}
