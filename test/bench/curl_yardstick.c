/*
 * curl_yardstick.c
 *		The yardstick of provider calls: how many POSTs a bare libcurl loop gets
 *		answered in a second.
 *
 * One thread, one epoll descriptor, libcurl's multi interface driven by
 * curl_multi_socket_action(), easy handles used again and again; nothing is
 * stored, looked at or waited for.  What a durable call costs on top is the
 * difference to this.
 *
 * usage: curl_yardstick URL COUNT CONCURRENCY BODY-BYTES
 * prints: answers a second, CPU microseconds per answer
 */
#define _GNU_SOURCE
#include <curl/curl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define TIME_LIMIT_S	120
#define MAX_READY		256

typedef struct Request
{
	CURL	   *easy;
	struct curl_slist *headers;
	size_t		received;
} Request;

static CURLM *multi;
static int	epoll_fd;
static double timer_at = -1;	/* when libcurl wants to be called, -1: not at all */
static const char *url;
static char *body;
static long body_bytes;
static long started = 0;
static long answered = 0;
static long wanted;

static double
now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void
die(const char *what)
{
	fprintf(stderr, "curl_yardstick: %s\n", what);
	exit(1);
}

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy;
	(void) arg;
	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		curl_multi_assign(multi, fd, NULL);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) != 0)
		return -1;
	curl_multi_assign(multi, fd, &epoll_fd);
	return 0;
}

static int
on_timer(CURLM *m, long timeout_ms, void *arg)
{
	(void) m;
	(void) arg;
	timer_at = timeout_ms < 0 ? -1 : now_s() + timeout_ms / 1e3;
	return 0;
}

static size_t
on_body(char *data, size_t size, size_t count, void *arg)
{
	Request    *request = arg;

	(void) data;
	request->received += size * count;
	return size * count;
}

/* Each request has ids of its own, as a worker's have. */
static void
start(Request *request)
{
	char		line[128];

	started++;
	curl_slist_free_all(request->headers);
	request->headers = curl_slist_append(NULL, "Content-Type: application/json");
	request->headers = curl_slist_append(request->headers, "Accept: application/json");
	request->headers = curl_slist_append(request->headers, "Expect:");
	snprintf(line, sizeof(line), "Leasehold-Request-Id: 1-%ld", started);
	request->headers = curl_slist_append(request->headers, line);
	snprintf(line, sizeof(line), "Idempotency-Key: 00000000-0000-7000-8000-%012ld:1:acquire", started);
	request->headers = curl_slist_append(request->headers, line);
	request->received = 0;
	curl_easy_setopt(request->easy, CURLOPT_HTTPHEADER, request->headers);
	if (curl_multi_add_handle(multi, request->easy) != CURLM_OK)
		die("could not start a request");
}

static void
prepare(Request *request)
{
	request->easy = curl_easy_init();
	if (request->easy == NULL)
		die("out of memory");
	curl_easy_setopt(request->easy, CURLOPT_URL, url);
	curl_easy_setopt(request->easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(request->easy, CURLOPT_POST, 1L);
	curl_easy_setopt(request->easy, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(request->easy, CURLOPT_POSTFIELDSIZE, body_bytes);
	curl_easy_setopt(request->easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(request->easy, CURLOPT_WRITEDATA, request);
	curl_easy_setopt(request->easy, CURLOPT_PRIVATE, request);
	curl_easy_setopt(request->easy, CURLOPT_TIMEOUT_MS, 30000L);
	curl_easy_setopt(request->easy, CURLOPT_USERAGENT, "curl-yardstick");
}

static void
collect(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		Request    *request;
		long		status = 0;

		if (message->msg != CURLMSG_DONE)
			continue;
		if (message->data.result != CURLE_OK)
			die(curl_easy_strerror(message->data.result));
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &request);
		curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &status);
		if (status != 200 || request->received == 0)
			die("an answer is not what was expected");
		answered++;
		curl_multi_remove_handle(multi, request->easy);
		if (started < wanted)
			start(request);
	}
}

static void
turn(double give_up)
{
	struct epoll_event ready[MAX_READY];
	double		now = now_s();
	int			running;
	int			count;
	int			wait_ms = 1000;

	if (now > give_up)
		die("the time is over");
	if (timer_at >= 0)
		wait_ms = timer_at <= now ? 0 : (int) ((timer_at - now) * 1e3) + 1;
	count = epoll_wait(epoll_fd, ready, MAX_READY, wait_ms);
	for (int i = 0; i < count; i++)
	{
		int			what = (ready[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
			(ready[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			(ready[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);

		curl_multi_socket_action(multi, ready[i].data.fd, what, &running);
	}
	if (timer_at >= 0 && timer_at <= now_s())
	{
		timer_at = -1;
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	collect();
}

int
main(int argc, char **argv)
{
	long		concurrency;
	double		begun;
	double		took;
	struct rusage usage;
	Request    *requests;

	if (argc != 5)
		die("usage: curl_yardstick URL COUNT CONCURRENCY BODY-BYTES");
	url = argv[1];
	wanted = atol(argv[2]);
	concurrency = atol(argv[3]);
	body_bytes = atol(argv[4]);
	if (wanted < 1 || wanted > 10000000 || concurrency < 1 || concurrency > 20000 ||
		body_bytes < 1 || body_bytes > 1048576)
		die("an argument is out of range");

	body = malloc(body_bytes);
	requests = calloc(concurrency, sizeof(Request));
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (body == NULL || requests == NULL || multi == NULL || epoll_fd < 0)
		die("could not be set up");
	memset(body, ' ', body_bytes);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, concurrency);

	begun = now_s();
	for (long i = 0; i < concurrency && started < wanted; i++)
	{
		prepare(&requests[i]);
		start(&requests[i]);
	}
	while (answered < wanted)
		turn(begun + TIME_LIMIT_S);
	took = now_s() - begun;
	getrusage(RUSAGE_SELF, &usage);
	printf("%.1f %.2f\n", answered / took,
		   (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 / answered +
		   (double) (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / answered);
	return 0;
}
