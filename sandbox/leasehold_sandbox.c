/*
 * leasehold_sandbox.c
 *		The program behind the provider "bubblewrap": it holds a lease's workspace,
 *		enters it, and is the first process of every command's sandbox.
 *
 *	leasehold_sandbox hold DIRECTORY BYTES INODES
 *		Makes a user and a mount namespace in which DIRECTORY/workspace is a file
 *		system in memory of that size, and stays there, so that it stays.  Says so,
 *		or what is wrong, on descriptor 3 and leaves DIRECTORY/holder, a line with
 *		its process id and the time at which it began.  It is no child of who
 *		called it and outlives him.
 *
 *	leasehold_sandbox enter PID TIME PROCESSES PARENT BWRAP ARGUMENT...
 *		Enters the namespaces of the holder with that id and beginning, and runs
 *		bubblewrap there as the first process of a namespace, so that all that
 *		comes of it ends when this process does, at whatever moment that is.  Dies
 *		with its parent.
 *
 *	leasehold_sandbox init
 *		Within the sandbox: runs the command that descriptor 4 describes, and tells
 *		on descriptor 5 how it ended.  When it exits, the kernel ends all that is
 *		left of the command, since it is the first process of its namespace.  It
 *		ends, too, when nobody listens on descriptor 5 any more.
 *
 * What runs here is not trusted with anything; what it relies on are the kernel's
 * namespaces and limits, as bubblewrap sets them up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process_identity.h"
#include "sandbox_request.h"

#define READY_FD		3

static int	hold(char **args);
static void hold_forever(const char *directory, const char *bytes, const char *inodes);
static void own_namespaces(void);
static void write_file(const char *path, const char *text);
static void leave_keyring(void);
static void mount_workspace(const char *bytes, const char *inodes);
static void leave_record(void);
static int	enter(char **args);
static void join_namespace(int fd, int type);
static int	open_namespace(pid_t pid, const char *name);
static bool is_there(pid_t pid, unsigned long long began);
static pid_t run_first(char **argv, const int *alive);
static int	init(void);
static char **read_request(char *text, size_t length, char ***environment, const char **directory);
static char *read_all(int fd, size_t *length);
static void limit_shared_resources(void);
static void set_limit(int resource, const char *value);
static pid_t begin_command(char **argv, char **environment, const char *directory, sigset_t *signals);
static void filter_system_calls(void);
static int	watch_command(pid_t command, const sigset_t *signals);
static bool reap(pid_t command);
static void report(const char *format,...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format,...) __attribute__((format(printf, 1, 2), noreturn));

static int	report_fd = -1;		/* where failures are told */

int
main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "hold") == 0)
		return hold(argv + 2);
	if (argc > 6 && strcmp(argv[1], "enter") == 0)
		return enter(argv + 2);
	if (argc == 2 && strcmp(argv[1], "init") == 0)
		return init();
	fprintf(stderr, "leasehold_sandbox is not for people: see the provider \"bubblewrap\" of Leasehold\n");
	return 2;
}

/* Holding a workspace */

static int
hold(char **args)
{
	pid_t		child;

	report_fd = READY_FD;
	umask(077);
	child = fork();
	if (child < 0)
		fail("could not fork: %s", strerror(errno));
	if (child == 0)
		hold_forever(args[0], args[1], args[2]);
	return 0;
}

static void
hold_forever(const char *directory, const char *bytes, const char *inodes)
{
	sigset_t	all;

	setsid();
	leave_keyring();
	/* this very one, whatever will have its name */
	if (chdir(directory) != 0)
		fail("could not enter the directory: %s", strerror(errno));
	own_namespaces();
	mount_workspace(bytes, inodes);
	/* so that who enters may look at our namespaces */
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_NAME, "leasehold-lease");
	leave_record();
	report("ready\n");
	if (chdir("/") != 0)
		fail("could not leave the directory: %s", strerror(errno));
	close_range(0, ~0U, 0);
	/* nobody ends it by mistake; a service that is stopped can */
	sigfillset(&all);
	sigdelset(&all, SIGTERM);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (;;)
		pause();
}

static void
own_namespaces(void)
{
	uid_t		uid = geteuid();
	gid_t		gid = getegid();
	char		map[64];

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
		fail("could not make a user namespace: %s", strerror(errno));
	write_file("/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "%u %u 1", uid, uid);
	write_file("/proc/self/uid_map", map);
	snprintf(map, sizeof(map), "%u %u 1", gid, gid);
	write_file("/proc/self/gid_map", map);
	/* what the host unmounts is unmounted here, too, but not the other way round */
	if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
		fail("could not make the mounts its own: %s", strerror(errno));
}

static void
write_file(const char *path, const char *text)
{
	int			fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t) strlen(text) || close(fd) != 0)
		fail("could not write \"%s\": %s", path, strerror(errno));
}

/* Keys of the server's session are none of the sandbox's: see keyrings(7). */
static void
leave_keyring(void)
{
	/* where the host refuses it, it refuses the use of keys, too */
	(void) syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
}

static void
mount_workspace(const char *bytes, const char *inodes)
{
	/* what of it the sandbox sees: the workspace itself, /tmp and /dev/shm */
	static const char *const parts[] = {"workspace/work", "workspace/tmp", "workspace/shm"};
	char		options[128];

	snprintf(options, sizeof(options), "size=%s,nr_inodes=%s,mode=0700", bytes, inodes);
	if (mount("leasehold", "workspace", "tmpfs", MS_NOSUID | MS_NODEV, options) != 0)
		fail("could not mount a workspace: %s", strerror(errno));
	for (int i = 0; i < 3; i++)
	{
		if (mkdir(parts[i], 0700) != 0)
			fail("could not make the workspace: %s", strerror(errno));
	}
}

/* Last of all, and at once: who finds it may enter.  Of two, only one comes to be found. */
static void
leave_record(void)
{
	char		line[64];

	snprintf(line, sizeof(line), "%d %llu\n", getpid(), process_start_time(getpid()));
	(void) unlink("holder.new");
	write_file("holder.new", line);
	if (link("holder.new", "holder") != 0)
		fail("could not leave a record: %s", strerror(errno));
	(void) unlink("holder.new");
}

/* Entering it */

static int
enter(char **args)
{
	pid_t		holder = (pid_t) atol(args[0]);
	unsigned long long began = strtoull(args[1], NULL, 10);
	pid_t		parent = (pid_t) atol(args[3]);

	int			user;
	int			mounts;
	int			alive[2];		/* closed when this process has died */
	pid_t		child;
	int			status;

	report_fd = SANDBOX_STATUS_FD;
	user = open_namespace(holder, "user");
	mounts = open_namespace(holder, "mnt");
	/* asked after they were opened: an id may come to be another process's */
	if (!is_there(holder, began) || user < 0 || mounts < 0)
		fail("could not open the workspace");
	umask(022);
	leave_keyring();
	join_namespace(user, CLONE_NEWUSER);
	join_namespace(mounts, CLONE_NEWNS);
	/* after that, as the change of rights forgets it */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
		fail("its parent is gone");
	/* counted in the holder's namespace, so all commands of a lease share it */
	set_limit(RLIMIT_NPROC, args[2]);
	/* the server may be spared when memory is short; a sandbox is not */
	write_file("/proc/self/oom_score_adj", "500");
	/* what bubblewrap mounts is seen nowhere else */
	if (unshare(CLONE_NEWNS | CLONE_NEWPID) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		fail("could not make namespaces: %s", strerror(errno));
	if (pipe2(alive, O_CLOEXEC) != 0)
		fail("could not make a pipe: %s", strerror(errno));
	child = run_first(args + 4, alive);
	/* the channels are the command's: they are to close when it ends */
	close_range(0, alive[1] - 1, 0);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return 0;
}

static int
open_namespace(pid_t pid, const char *name)
{
	char		path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Says so if it is gone. */
static bool
is_there(pid_t pid, unsigned long long began)
{
	int			pidfd = process_open(pid, began);

	if (pidfd < 0)
	{
		if (errno != ESRCH)
			return false;
		report("gone\n");
		_exit(1);
	}
	close(pidfd);
	return true;
}

static void
join_namespace(int fd, int type)
{
	if (setns(fd, type) != 0)
		fail("could not enter the workspace: %s", strerror(errno));
	close(fd);
}

/* The first process of the new namespace.  When its parent dies, the kernel kills it, and all others there. */
static pid_t
run_first(char **argv, const int *alive)
{
	struct pollfd parent = {.fd = alive[0],.events = POLLIN};
	pid_t		child = fork();

	if (child < 0)
		fail("could not fork: %s", strerror(errno));
	if (child > 0)
		return child;
	close(alive[1]);
	/* it may have died before it could be told of */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || poll(&parent, 1, 0) != 0)
		_exit(1);
	execv(argv[0], argv);
	fail("could not run \"%s\": %s", argv[0], strerror(errno));
}

/* Running a command in it */

static int
init(void)
{
	size_t		length;
	char	   *text;
	char	  **argv;
	char	  **environment;
	const char *directory;
	sigset_t	signals;
	pid_t		command;

	report_fd = SANDBOX_STATUS_FD;
	/* the command must not look into this process, which is its user's, too */
	prctl(PR_SET_DUMPABLE, 0);
	text = read_all(SANDBOX_REQUEST_FD, &length);
	argv = read_request(text, length, &environment, &directory);
	close(SANDBOX_REQUEST_FD);
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	command = begin_command(argv, environment, directory, &signals);
	return watch_command(command, &signals);
}

static char *
read_all(int fd, size_t *length)
{
	struct stat status;
	char	   *text;
	size_t		got = 0;

	if (fstat(fd, &status) != 0 || (text = malloc(status.st_size + 1)) == NULL)
		fail("could not read the command: %s", strerror(errno));
	while (got < (size_t) status.st_size)
	{
		ssize_t		part = pread(fd, text + got, status.st_size - got, got);

		if (part <= 0)
			fail("could not read the command: %s", strerror(errno));
		got += part;
	}
	text[got] = '\0';
	*length = got;
	return text;
}

/*
 * The request: strings, each with its NUL.  SANDBOX_LIMITS limits, the working
 * directory, the number of arguments, the arguments, and the variables.  The
 * limits are set at once; this process needs little.
 */
static char **
read_request(char *text, size_t length, char ***environment, const char **directory)
{
	static const int resources[SANDBOX_LIMITS] = {RLIMIT_DATA, RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_CORE};
	char	  **strings;
	char	  **argv;
	int			count = 0;
	int			args;

	for (size_t i = 0; i < length; i++)
		count += text[i] == '\0';
	if (count < SANDBOX_LIMITS + 3 || (strings = calloc(count + 2, sizeof(char *))) == NULL)
		fail("the command is not complete");
	for (int i = 0; i < count; i++)
	{
		strings[i] = text;
		text += strlen(text) + 1;
	}
	for (int i = 0; i < SANDBOX_LIMITS; i++)
		set_limit(resources[i], strings[i]);
	limit_shared_resources();
	*directory = strings[SANDBOX_LIMITS];
	args = atoi(strings[SANDBOX_LIMITS + 1]);
	if (args < 1 || args > count - SANDBOX_LIMITS - 2)
		fail("the command is not complete");
	/* one place further to the front, to make room for the NULL between them */
	argv = &strings[SANDBOX_LIMITS + 1];
	memmove(argv, argv + 1, args * sizeof(char *));
	argv[args] = NULL;
	*environment = &argv[args + 1];
	return argv;
}

/* What the kernel counts for a user, and so for the server's processes, too. */
static void
limit_shared_resources(void)
{
	set_limit(RLIMIT_NOFILE, "4096");
	set_limit(RLIMIT_MSGQUEUE, "0");
	set_limit(RLIMIT_SIGPENDING, "1024");
	set_limit(RLIMIT_MEMLOCK, "65536");
}

/* An empty value leaves the limit as it is. */
static void
set_limit(int resource, const char *value)
{
	struct rlimit limit;

	if (value[0] == '\0')
		return;
	limit.rlim_cur = limit.rlim_max = strtoull(value, NULL, 10);
	/* told by SIGXCPU first, and killed a second later if that is ignored */
	if (resource == RLIMIT_CPU)
		limit.rlim_max++;
	if (setrlimit(resource, &limit) != 0)
		fail("could not set a limit: %s", strerror(errno));
}

static pid_t
begin_command(char **argv, char **environment, const char *directory, sigset_t *signals)
{
	int			problem[2];
	char		text[512];
	ssize_t		length;
	pid_t		child;

	if (pipe2(problem, O_CLOEXEC) != 0)
		fail("could not make a pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		fail("could not fork: %s", strerror(errno));
	if (child == 0)
	{
		sigprocmask(SIG_UNBLOCK, signals, NULL);
		close(SANDBOX_STATUS_FD);
		report_fd = problem[1];
		/* what it starts, and only that, is in its group */
		setpgid(0, 0);
		if (chdir(directory) != 0)
			fail("could not change to directory \"%.200s\": %s", directory, strerror(errno));
		filter_system_calls();
		environ = environment;
		execvp(argv[0], argv);
		fail("could not run \"%.200s\": %s", argv[0], strerror(errno));
	}
	close(problem[1]);
	length = read(problem[0], text, sizeof(text) - 1);
	close(problem[0]);
	if (length > 0)
	{
		report("%.*s", (int) length, text);
		_exit(1);
	}
	report("begun\n");
	/* these are the command's: it is not to be said that they are open still */
	for (int fd = 0; fd <= 2; fd++)
		close(fd);
	return child;
}

/*
 * What namespaces do not keep apart: keys, which are a user's; sockets that reach
 * the machine below this one (AF_VSOCK) and such; and parts of the kernel that
 * sandboxes need least and that were broken most often, protocols and line
 * disciplines that would have to be loaded among them.  Programs of another
 * architecture, whose calls have other numbers, are killed.
 */
static void
filter_system_calls(void)
{
	const struct
	{
		int			call;
		int			error;
		unsigned	count;
		struct scmp_arg_cmp args[2];
	}			refused[] = {
		{SCMP_SYS(add_key), ENOSYS}, {SCMP_SYS(request_key), ENOSYS}, {SCMP_SYS(keyctl), ENOSYS}, {SCMP_SYS(bpf), ENOSYS},
		{SCMP_SYS(perf_event_open), ENOSYS}, {SCMP_SYS(userfaultfd), ENOSYS}, {SCMP_SYS(io_uring_setup), ENOSYS},
		{SCMP_SYS(io_uring_enter), ENOSYS}, {SCMP_SYS(io_uring_register), ENOSYS}, {SCMP_SYS(memfd_secret), ENOSYS},
		{SCMP_SYS(syslog), EPERM},
		{SCMP_SYS(ioctl), EPERM, 1, {SCMP_A1(SCMP_CMP_MASKED_EQ, 0xFFFFFFFF, TIOCSETD)}},
		{SCMP_SYS(socketpair), EAFNOSUPPORT, 1, {SCMP_A0(SCMP_CMP_NE, AF_UNIX)}},
		{SCMP_SYS(socket), EAFNOSUPPORT, 1, {SCMP_A0(SCMP_CMP_GT, AF_NETLINK)}},
		{SCMP_SYS(socket), EPROTONOSUPPORT, 2, {SCMP_A0(SCMP_CMP_EQ, AF_NETLINK), SCMP_A2(SCMP_CMP_NE, NETLINK_ROUTE)}},
		{SCMP_SYS(socket), EPROTONOSUPPORT, 2, {SCMP_A0(SCMP_CMP_EQ, AF_INET), SCMP_A2(SCMP_CMP_EQ, IPPROTO_DCCP)}},
		{SCMP_SYS(socket), EPROTONOSUPPORT, 2, {SCMP_A0(SCMP_CMP_EQ, AF_INET), SCMP_A2(SCMP_CMP_GT, IPPROTO_ICMPV6)}},
		{SCMP_SYS(socket), EPROTONOSUPPORT, 2, {SCMP_A0(SCMP_CMP_EQ, AF_INET6), SCMP_A2(SCMP_CMP_EQ, IPPROTO_DCCP)}},
		{SCMP_SYS(socket), EPROTONOSUPPORT, 2, {SCMP_A0(SCMP_CMP_EQ, AF_INET6), SCMP_A2(SCMP_CMP_GT, IPPROTO_ICMPV6)}},
	};
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int			result = filter != NULL ? 0 : -ENOMEM;

	for (size_t i = 0; result == 0 && i < sizeof(refused) / sizeof(refused[0]); i++)
		result = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(refused[i].error), refused[i].call, refused[i].count, refused[i].args);
	for (int family = 0; result == 0 && family < AF_NETLINK; family++)
	{
		if (family != AF_UNIX && family != AF_INET && family != AF_INET6)
			result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, family));
	}
	if (result == 0)
		result = seccomp_load(filter);
	if (result != 0)
		fail("could not filter system calls: %s", strerror(-result));
	seccomp_release(filter);
}

/* Until it ends; passes on what the other side wants sent to all of it. */
static int
watch_command(pid_t command, const sigset_t *signals)
{
	struct pollfd fds[2];

	fds[0].fd = signalfd(-1, signals, SFD_CLOEXEC);
	fds[1].fd = SANDBOX_STATUS_FD;
	fds[0].events = fds[1].events = POLLIN;
	if (fds[0].fd < 0)
		fail("could not watch the command: %s", strerror(errno));
	for (;;)
	{
		struct signalfd_siginfo info;
		unsigned char wanted;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			fail("could not watch the command: %s", strerror(errno));
		if (fds[0].revents != 0 && read(fds[0].fd, &info, sizeof(info)) > 0 && reap(command))
			return 0;
		if (fds[1].revents != 0)
		{
			if (read(SANDBOX_STATUS_FD, &wanted, 1) != 1)
				return 0;
			kill(-1, wanted);
		}
	}
}

/* Whether the command is among those that ended. */
static bool
reap(pid_t command)
{
	int			status;
	pid_t		child;

	while ((child = waitpid(-1, &status, WNOHANG)) > 0)
	{
		if (child != command)
			continue;
		if (WIFEXITED(status))
			report("exit %d\n", WEXITSTATUS(status));
		else
			report("signal %d\n", WTERMSIG(status));
		return true;
	}
	return false;
}

/* Telling about it */

static void
report(const char *format,...)
{
	char		text[1024];
	va_list		args;
	int			length;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (length >= (int) sizeof(text))
		length = sizeof(text) - 1;
	if (write(report_fd, text, length) != length)
		_exit(1);
}

static void
fail(const char *format,...)
{
	char		text[900];
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	/* it may hold what somebody wants to be taken for a line of ours */
	for (char *at = text; *at != '\0'; at++)
	{
		if ((unsigned char) *at < ' ')
			*at = '?';
	}
	report("error %s\n", text);
	_exit(1);
}
