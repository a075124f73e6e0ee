/*
 * bubblewrap.c
 *		The built-in provider of sandboxes on this host.
 *
 * A sandbox is a directory, named after company, lease and generation, in that
 * of the installation, and a process that holds its workspace
 * (sandbox/leasehold_sandbox.c).  That process
 * outlives the worker and the server; whether it is there says whether the
 * sandbox is.  So a look-up, and a list, tell the truth at any time, and what was
 * made, or half made, before a crash is found and removed.
 *
 * Configuration: workspaceMb, memoryMb, processes, fileMb, cpuSeconds: see
 * docs/sandbox.md.
 */
#include "postgres.h"
#include "compat.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "utils/memutils.h"

#include "bubblewrap.h"
#include "child_process.h"
#include "event_loop.h"
#include "process_identity.h"
#include "provider.h"
#include "sandbox_host.h"
#include "sandbox_space.h"
#include "settings.h"
#include "worker.h"

#define READY_FD		3		/* of the holder, as it begins */
#define PATIENCE_MS		10000	/* to come and to go takes it much less */
#define INODES_PER_MB	256
#define DEFAULT_WORKSPACE_MB 512
#define LIST_MAX		100000
#define UUID_TEXT		36		/* letters of a uuid */
#define GENERATION_AT	(2 * UUID_TEXT + 2) /* in an id: after company and lease, with a dot each */

/* A call that waits for a holder to come, or to go. */
typedef struct SandboxCall
{
	Call	   *call;
	char		id[SANDBOX_ID_SIZE];
	char		path[MAXPGPATH];
	int			pidfd;			/* of what was started, or is to go */
	int			ready_fd;		/* -1: it is to go */
	int64		coming_mb;		/* what its workspace will be able to take */
	EventWatch *watch;
	EventTimer	patience;
	MemoryContextCallback cleanup;
} SandboxCall;

static void bubblewrap_acquire(Call *call);
static void bubblewrap_resume(Call *call);
static void bubblewrap_release(Call *call);
static void bubblewrap_destroy(Call *call);
static void bubblewrap_find(Call *call);
static void bubblewrap_list(Call *call);
static SandboxCall *begin(Call *call, const json_t *params);
static bool make_directories(SandboxCall *state);
static void start_holder(SandboxCall *state, int64 workspace_mb);
static void holder_spoke(int fd, uint32 events, void *arg);
static void take_or_give_back(SandboxCall *state);
static void remove_sandbox(SandboxCall *state);
static void holder_ended(int fd, uint32 events, void *arg);
static void out_of_patience(void *arg);
static void remove_directories(const char *path);
static void got(SandboxCall *state);
static void missing(SandboxCall *state, SandboxState found);
static void finish(SandboxCall *state, CallOutcome outcome, const char *code, const char *message);
static void stop_watching(SandboxCall *state);
static void clean_up(void *arg);
static char *list_entries(const char *installation, const char *company);

static int64 all_coming_mb = 0; /* what sandboxes are to get that are not there to be seen yet */

const Provider bubblewrap_provider = {
	.name = "bubblewrap",
	.acquire = bubblewrap_acquire,
	.resume = bubblewrap_resume,
	.release = bubblewrap_release,
	.destroy = bubblewrap_destroy,
	.find = bubblewrap_find,
	.list = bubblewrap_list,
	.execute = bubblewrap_execute,
	.cancel = bubblewrap_cancel,
	.abandon = bubblewrap_abandon,
};

/* Coming */

static void
bubblewrap_acquire(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);
	SandboxCall *state = begin(call, params);
	int64		workspace_mb = bubblewrap_number(params, "workspaceMb", DEFAULT_WORKSPACE_MB);
	SandboxHolder holder;
	SandboxState found = sandbox_holder_find(state->path, &holder);
	StringInfoData problem;

	json_decref(params);
	initStringInfo(&problem);
	if (!setting_bubblewrap)
		finish(state, OUTCOME_FAILED, "provider_forbidden", "leasehold.bubblewrap is off");
	else if (found == SANDBOX_THERE)
		got(state);
	else if (found == SANDBOX_UNCLEAR)
		missing(state, found);
	else if (sandbox_host_problem(workspace_mb + all_coming_mb, &problem))
		finish(state, OUTCOME_RETRY, "sandbox_unavailable", problem.data);
	else
	{
		remove_directories(state->path);
		if (!make_directories(state))
			finish(state, OUTCOME_RETRY, "sandbox_unavailable", "the directory of the sandbox could not be made");
		else
			start_holder(state, workspace_mb);
	}
}

/* What all calls about one sandbox have. */
static SandboxCall *
begin(Call *call, const json_t *params)
{
	SandboxCall *state = MemoryContextAllocZero(call->context, sizeof(SandboxCall));
	const char *id = json_string_value(json_object_get(params, "providerLeaseId"));
	const json_t *label = json_object_get(params, "leasehold");

	state->call = call;
	state->pidfd = state->ready_fd = -1;
	state->patience.fire = out_of_patience;
	state->patience.arg = state;
	state->cleanup.func = clean_up;
	state->cleanup.arg = state;
	MemoryContextRegisterResetCallback(call->context, &state->cleanup);
	call->transport = state;
	if (id != NULL)
		strlcpy(state->id, id, sizeof(state->id));
	else
	{
		const char *company = json_string_value(json_object_get(params, "companyId"));
		const char *lease = json_string_value(json_object_get(label, "leaseId"));

		snprintf(state->id, sizeof(state->id), "%s.%s.%d", company ? company : "", lease ? lease : "", call->generation);
	}
	(void) bubblewrap_directory(json_string_value(json_object_get(label, "installationId")), state->id, state->path);
	return state;
}

bool
bubblewrap_directory(const char *installation, const char *id, char *path)
{
	/* uuids and a number: nothing that could lead elsewhere */
	static const char letters[] = "0123456789abcdef-.";

	path[0] = '\0';
	if (installation == NULL || strlen(installation) != UUID_TEXT || strspn(installation, letters) != UUID_TEXT ||
		strlen(id) < 2 * UUID_TEXT + 3 || strlen(id) >= SANDBOX_ID_SIZE || strspn(id, letters) != strlen(id) ||
		id[UUID_TEXT] != '.' || id[GENERATION_AT - 1] != '.' || strspn(id + GENERATION_AT, "0123456789") != strlen(id + GENERATION_AT))
		return false;
	snprintf(path, MAXPGPATH, "%s/%s/%s", setting_bubblewrap_directory, installation, id);
	return true;
}

CallOutcome
bubblewrap_missing(SandboxState found, const char **code, const char **message)
{
	bool		gone = found == SANDBOX_GONE;

	*code = gone ? "resource_gone" : "sandbox_unavailable";
	*message = gone ? "the sandbox is gone" : "it cannot be said whether the sandbox is there: descriptors or memory are short";
	return gone ? OUTCOME_GONE : OUTCOME_RETRY;
}

static void
missing(SandboxCall *state, SandboxState found)
{
	const char *code;
	const char *message;
	CallOutcome outcome = bubblewrap_missing(found, &code, &message);

	finish(state, outcome, code, message);
}

static bool
make_directories(SandboxCall *state)
{
	char		installation[MAXPGPATH];
	char		workspace[MAXPGPATH + 12];

	if (state->path[0] == '\0')
		return false;
	strlcpy(installation, state->path, sizeof(installation));
	*strrchr(installation, '/') = '\0';
	(void) mkdir(installation, S_IRWXU);
	snprintf(workspace, sizeof(workspace), "%s/workspace", state->path);
	return mkdir(state->path, S_IRWXU) == 0 && mkdir(workspace, S_IRWXU) == 0;
}

static void
start_holder(SandboxCall *state, int64 workspace_mb)
{
	char		bytes[32];
	char		inodes[32];
	char	   *argv[] = {(char *) sandbox_host_helper(), "hold", state->path, bytes, inodes, NULL};
	int			pipe_fds[2];
	int			null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	const char *problem = "no descriptors are left";

	snprintf(bytes, sizeof(bytes), INT64_FORMAT, workspace_mb * 1024 * 1024);
	snprintf(inodes, sizeof(inodes), INT64_FORMAT, workspace_mb * INODES_PER_MB);
	if (null_fd >= 0 && pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) == 0)
	{
		int			fds[] = {null_fd, null_fd, null_fd, pipe_fds[1]};

		StaticAssertStmt(lengthof(fds) == READY_FD + 1, "the pipe has the place that the holder expects");
		state->pidfd = child_process_start(argv, fds, lengthof(fds), &problem);
		close(pipe_fds[1]);
		state->ready_fd = pipe_fds[0];
	}
	if (null_fd >= 0)
		close(null_fd);
	if (state->pidfd >= 0)
		state->watch = event_loop_add(state->ready_fd, EPOLLIN, holder_spoke, state);
	if (state->watch == NULL)
	{
		finish(state, OUTCOME_RETRY, "sandbox_unavailable", problem ? problem : "no descriptors are left");
		return;
	}
	state->coming_mb = workspace_mb;
	all_coming_mb += workspace_mb;
	event_loop_set_timer(&state->patience, PATIENCE_MS);
}

/* It is ready, or could not be made. */
static void
holder_spoke(int fd, uint32 events, void *arg)
{
	SandboxCall *state = arg;
	char		text[500];
	ssize_t		length = read(fd, text, sizeof(text) - 1);

	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* its parent, which we started, has ended */
	child_process_reap(state->pidfd);
	state->pidfd = -1;
	text[Max(length, 0)] = '\0';
	if (strncmp(text, "ready", 5) == 0)
		take_or_give_back(state);
	else
	{
		remove_directories(state->path);
		finish(state, OUTCOME_RETRY, "sandbox_unavailable", text[0] != '\0' ? text : "the sandbox could not be made");
	}
}

/* Another worker may have promised the same memory to another one meanwhile. */
static void
take_or_give_back(SandboxCall *state)
{
	SandboxHolder holder;
	StringInfoData problem;
	int			pidfd;

	initStringInfo(&problem);
	if (!sandbox_space_problem(all_coming_mb - state->coming_mb, &problem))
	{
		got(state);
		return;
	}
	pidfd = sandbox_holder_find(state->path, &holder) == SANDBOX_THERE ? process_open(holder.pid, holder.began) : -1;
	if (pidfd >= 0)
	{
		(void) syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		close(pidfd);
	}
	/* the next attempt, or a sweep, removes the directory */
	finish(state, OUTCOME_RETRY, "sandbox_unavailable", problem.data);
}

static void
bubblewrap_resume(Call *call)
{
	bubblewrap_find(call);
}

static void
bubblewrap_find(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);
	SandboxCall *state = begin(call, params);
	SandboxHolder holder;
	SandboxState found = sandbox_holder_find(state->path, &holder);

	json_decref(params);
	if (found == SANDBOX_THERE)
		got(state);
	else
	{
		remove_directories(state->path);
		missing(state, found);
	}
}

static void
got(SandboxCall *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->call->context);

	state->call->provider_lease_id = pstrdup(state->id);
	/* where commands run, and how, if nothing else is said */
	state->call->metadata = pstrdup("{\"remoteCwd\": \"/workspace\", \"shellCommand\": \"sh\"}");
	MemoryContextSwitchTo(old);
	finish(state, OUTCOME_OK, NULL, "");
}

/* Going */

static void
bubblewrap_release(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);
	const char *disposition = json_string_value(json_object_get(json_object_get(params, "leasehold"), "disposition"));
	SandboxCall *state = begin(call, params);

	if (disposition != NULL && strcmp(disposition, "delete") != 0)
		finish(state, OUTCOME_OK, NULL, "");
	else
		remove_sandbox(state);
	json_decref(params);
}

static void
bubblewrap_destroy(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);

	remove_sandbox(begin(call, params));
	json_decref(params);
}

static void
remove_sandbox(SandboxCall *state)
{
	SandboxHolder holder;
	SandboxState found;

	if (state->path[0] == '\0')
	{
		finish(state, OUTCOME_GONE, "resource_gone", "there is no such sandbox");
		return;
	}
	bubblewrap_end_commands(state->path);
	found = sandbox_holder_find(state->path, &holder);
	if (found == SANDBOX_GONE)
	{
		remove_directories(state->path);
		finish(state, OUTCOME_OK, NULL, "");
		return;
	}
	if (found == SANDBOX_THERE)
		state->pidfd = process_open(holder.pid, holder.began);
	if (state->pidfd < 0)
	{
		/* if it has ended meanwhile, the next attempt sees it */
		missing(state, SANDBOX_UNCLEAR);
		return;
	}
	(void) syscall(SYS_pidfd_send_signal, state->pidfd, SIGKILL, NULL, 0);
	state->watch = event_loop_add(state->pidfd, EPOLLIN, holder_ended, state);
	if (state->watch == NULL)
		finish(state, OUTCOME_RETRY, "sandbox_unavailable", "no descriptors are left");
	else
		event_loop_set_timer(&state->patience, PATIENCE_MS);
}

static void
holder_ended(int fd, uint32 events, void *arg)
{
	SandboxCall *state = arg;

	remove_directories(state->path);
	finish(state, OUTCOME_OK, NULL, "");
}

static void
out_of_patience(void *arg)
{
	SandboxCall *state = arg;

	finish(state, state->ready_fd >= 0 ? OUTCOME_UNKNOWN : OUTCOME_RETRY, "provider_timeout",
		   "the process that holds the sandbox does not answer");
}

/*
 * What is left of a sandbox, if it is certain that nobody holds it; its workspace
 * was never of the host's.
 */
static void
remove_directories(const char *path)
{
	static const char *const parts[] = {"holder", "holder.new"};
	char		name[MAXPGPATH + 12];
	SandboxHolder holder;

	if (path[0] == '\0' || sandbox_holder_find(path, &holder) != SANDBOX_GONE)
		return;
	for (int i = 0; i < (int) lengthof(parts); i++)
	{
		snprintf(name, sizeof(name), "%s/%s", path, parts[i]);
		(void) unlink(name);
	}
	snprintf(name, sizeof(name), "%s/workspace", path);
	(void) rmdir(name);
	(void) rmdir(path);
}

static void
finish(SandboxCall *state, CallOutcome outcome, const char *code, const char *message)
{
	stop_watching(state);
	call_set_outcome(state->call, outcome, code, "%s", message);
	worker_call_finished(state->call);
}

static void
stop_watching(SandboxCall *state)
{
	event_loop_cancel_timer(&state->patience);
	if (state->watch != NULL)
		event_loop_remove(state->watch);
	state->watch = NULL;
	all_coming_mb -= state->coming_mb;
	state->coming_mb = 0;
}

static void
clean_up(void *arg)
{
	SandboxCall *state = arg;

	stop_watching(state);
	if (state->ready_fd >= 0)
	{
		close(state->ready_fd);
		/* the holder, if it made one, is a process of its own */
		if (state->pidfd >= 0)
			child_process_kill(state->pidfd);
	}
	else if (state->pidfd >= 0)
		close(state->pidfd);
}

/* What there is */

static void
bubblewrap_list(Call *call)
{
	json_t	   *params = json_loads(call->params, 0, NULL);
	const char *installation = json_string_value(json_object_get(json_object_get(params, "leasehold"), "installationId"));
	char	   *listed = list_entries(installation, json_string_value(json_object_get(params, "companyId")));

	json_decref(params);
	if (listed == NULL)
		call_set_outcome(call, OUTCOME_RETRY, "sandbox_unavailable", "leasehold.bubblewrap_directory cannot be read");
	else
	{
		call->listed = MemoryContextStrdup(call->context, listed);
		call_set_outcome(call, OUTCOME_OK, NULL, "%s", "");
	}
	worker_call_finished(call);
}

/* The company's; NULL if it cannot be said. */
static char *
list_entries(const char *installation, const char *company)
{
	char		path[MAXPGPATH];
	StringInfoData list;
	int			count = 0;
	struct dirent *entry;
	DIR		   *dir;

	snprintf(path, sizeof(path), "%s/%s", setting_bubblewrap_directory, installation);
	dir = opendir(path);
	if (dir == NULL && errno != ENOENT)
		return NULL;
	initStringInfo(&list);
	appendStringInfoChar(&list, '[');
	while (dir != NULL && (entry = readdir(dir)) != NULL && count < LIST_MAX)
	{
		const char *id = entry->d_name;

		if (bubblewrap_directory(installation, id, path) && strncmp(id, company, UUID_TEXT) == 0)
			appendStringInfo(&list, "%s{\"providerLeaseId\":\"%s\",\"companyId\":\"%s\",\"leaseId\":\"%.36s\",\"generation\":%d}",
							 count++ > 0 ? "," : "", id, company, id + UUID_TEXT + 1, atoi(id + GENERATION_AT));
	}
	if (dir != NULL)
		closedir(dir);
	appendStringInfoChar(&list, ']');
	return list.data;
}

int64
bubblewrap_number(const json_t *params, const char *name, int64 otherwise)
{
	const json_t *value = json_object_get(json_object_get(params, "config"), name);

	return json_is_number(value) && json_number_value(value) >= 1 ? (int64) json_number_value(value) : otherwise;
}
