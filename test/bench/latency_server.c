/*
 * latency_server.c
 *		A provider that takes its time: answers each JSON-RPC POST after a fixed
 *		delay, or never.
 *
 * One thread and one epoll descriptor, so that ten thousand requests can be
 * under way at once.  Requests are not looked into: the ids that the answer
 * repeats come with the headers Leasehold-Request-Id and Idempotency-Key.  Any
 * other request than a POST is answered at once with what was seen so far:
 * requests, those under way now, and the most at one time.
 *
 * usage: latency_server PORT-FILE DELAY-MS [LOG-FILE]
 *
 * Listens on a free port of 127.0.0.1 and writes it to PORT-FILE.  A negative
 * delay means never.  The log gets one line per POST when it has come in
 * completely: idempotency key and microseconds since 1970.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_READY		256
#define REQUEST_SIZE	16384
#define ID_SIZE			128

typedef struct Connection
{
	int			fd;
	bool		waiting;		/* its request is complete and not answered */
	double		due;
	struct Connection *next;	/* in the queue of those that wait */
	struct Connection *previous;
	size_t		length;
	char		request[REQUEST_SIZE];
} Connection;

static int	epoll_fd;
static int	listen_fd;
static double delay_s;
static FILE *arrivals = NULL;
static Connection *first = NULL;	/* the delay is the same for all, so the oldest is due first */
static Connection *last = NULL;
static long requests = 0;
static long in_flight = 0;
static long most_in_flight = 0;

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static double
now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void
watch(int fd, void *what)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl");
}

/* Copies a header's value; empty if it is not there. */
static void
header(const Connection *connection, const char *name, char *value)
{
	const char *line = connection->request;
	size_t		length = strlen(name);

	value[0] = '\0';
	while ((line = strstr(line, "\r\n")) != NULL)
	{
		line += 2;
		if (strncasecmp(line, name, length) == 0 && line[length] == ':')
		{
			size_t		size;

			line += length + 1;
			line += strspn(line, " ");
			size = strcspn(line, "\r");
			snprintf(value, ID_SIZE, "%.*s", (int) size, line);
			return;
		}
	}
}

static void
dequeue(Connection *connection)
{
	if (!connection->waiting)
		return;
	*(connection->previous ? &connection->previous->next : &first) = connection->next;
	*(connection->next ? &connection->next->previous : &last) = connection->previous;
	connection->waiting = false;
	in_flight--;
}

static void
hang_up(Connection *connection)
{
	dequeue(connection);
	close(connection->fd);
	free(connection);
}

static void
send_all(Connection *connection, const char *body)
{
	char		answer[1024];
	int			length = snprintf(answer, sizeof(answer),
								  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
								  strlen(body), body);

	connection->length = 0;
	/* an answer always fits into the socket's buffer; if not, the other side is gone */
	if (send(connection->fd, answer, length, MSG_NOSIGNAL) != length)
		shutdown(connection->fd, SHUT_RDWR);
}

static void
answer(Connection *connection)
{
	char		id[ID_SIZE];
	char		key[ID_SIZE];
	char		body[768];

	header(connection, "Leasehold-Request-Id", id);
	header(connection, "Idempotency-Key", key);
	snprintf(body, sizeof(body),
			 "{\"jsonrpc\":\"2.0\",\"id\":\"%s\",\"result\":{\"ok\":true,"
			 "\"supportedMethods\":[\"environmentFindLease\"],\"providerLeaseId\":\"sbx-%s\","
			 "\"metadata\":{\"remoteCwd\":\"/w\"}}}", id, key);
	dequeue(connection);
	send_all(connection, body);
}

/* Whether the request is complete: its head, and as many bytes as it says. */
static bool
is_complete(const Connection *connection)
{
	const char *head_end = strstr(connection->request, "\r\n\r\n");
	char		length[ID_SIZE];

	if (head_end == NULL)
		return false;
	header(connection, "Content-Length", length);
	return connection->length >= (size_t) (head_end + 4 - connection->request) + strtoul(length, NULL, 10);
}

static void
take(Connection *connection)
{
	char		key[ID_SIZE];

	if (strncmp(connection->request, "POST ", 5) != 0)
	{
		char		body[128];

		snprintf(body, sizeof(body), "%ld %ld %ld\n", requests, in_flight, most_in_flight);
		send_all(connection, body);
		return;
	}
	requests++;
	if (arrivals != NULL)
	{
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		header(connection, "Idempotency-Key", key);
		fprintf(arrivals, "%s %ld\n", key, now.tv_sec * 1000000 + now.tv_nsec / 1000);
		fflush(arrivals);
	}
	connection->waiting = true;
	connection->due = now_s() + delay_s;
	connection->next = NULL;
	connection->previous = last;
	*(last ? &last->next : &first) = connection;
	last = connection;
	if (++in_flight > most_in_flight)
		most_in_flight = in_flight;
	if (delay_s == 0)
		answer(connection);
}

static void
read_some(Connection *connection)
{
	ssize_t		got = recv(connection->fd, connection->request + connection->length,
						   REQUEST_SIZE - 1 - connection->length, 0);

	if (got <= 0)
	{
		hang_up(connection);
		return;
	}
	connection->length += got;
	connection->request[connection->length] = '\0';
	if (is_complete(connection))
		take(connection);
	else if (connection->length == REQUEST_SIZE - 1)
		hang_up(connection);
}

static void
accept_one(void)
{
	Connection *connection;
	int			fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	int			on = 1;

	if (fd < 0)
		return;
	connection = calloc(1, sizeof(Connection));
	if (connection == NULL)
		die("calloc");
	connection->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	watch(fd, connection);
}

static void
listen_somewhere(const char *port_file)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	size = sizeof(address);
	char		unfinished[4096];
	FILE	   *file;

	listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *) &address, size) != 0 ||
		listen(listen_fd, 4096) != 0 || getsockname(listen_fd, (struct sockaddr *) &address, &size) != 0)
		die("listen");
	snprintf(unfinished, sizeof(unfinished), "%s.new", port_file);
	file = fopen(unfinished, "w");
	if (file == NULL || fprintf(file, "%d\n", ntohs(address.sin_port)) < 0 || fclose(file) != 0 ||
		rename(unfinished, port_file) != 0)
		die(port_file);
}

static void
raise_descriptors(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int
main(int argc, char **argv)
{
	if (argc < 3 || argc > 4)
	{
		fprintf(stderr, "usage: latency_server PORT-FILE DELAY-MS [LOG-FILE]\n");
		return 1;
	}
	delay_s = atoi(argv[2]) < 0 ? 1e9 : atoi(argv[2]) / 1e3;
	if (argc == 4 && (arrivals = fopen(argv[3], "w")) == NULL)
		die(argv[3]);
	raise_descriptors();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		die("epoll_create1");
	listen_somewhere(argv[1]);
	watch(listen_fd, NULL);

	for (;;)
	{
		struct epoll_event ready[MAX_READY];
		double		left = first ? first->due - now_s() : 3600;
		int			count = epoll_wait(epoll_fd, ready, MAX_READY, left <= 0 ? 0 : left > 3600 ? 3600000 : (int) (left * 1e3) + 1);

		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < count; i++)
		{
			if (ready[i].data.ptr == NULL)
				accept_one();
			else
				read_some(ready[i].data.ptr);
		}
		while (first != NULL && first->due <= now_s())
			answer(first);
	}
}
