/*
 * http_client.c
 *		libcurl's multi interface inside the event loop.
 *
 * Nothing of the server is called from libcurl's callbacks: they use malloc,
 * keep what they learn in the exchange, and say no by return value.  Errors are
 * made of it when control is back.  All signals are blocked around calls into
 * libcurl, since its resolver threads inherit the mask and must never run a
 * handler of ours.
 *
 * One request looks a host's name up for all that are for the same host: they
 * wait for it, with their time limit running, and find the address in libcurl's
 * cache.  libcurl would start a thread for each, and with a name server that
 * does not answer those threads stay.
 *
 * A request is never sent twice by itself: libcurl repeats a POST on a new
 * connection when a reused one ends before the first byte of the answer,
 * although the server may have acted.  It can do so only if the body can be
 * rewound, so the body comes from a callback that cannot.
 */
#include "postgres.h"
#include "compat.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "event_loop.h"
#include "http_client.h"
#include "message_stream.h"
#include "settings.h"

#define MAX_RESOLVER_THREADS	128
#define IDLE_CONNECTION_S		30
#define KEEP_ADDRESS_S			60	/* in libcurl's cache */
#define TRUST_ADDRESS_S			50	/* less than that */
#define HOST_SIZE				256
#define KEEPALIVE_IDLE_S		60
#define KEEPALIVE_PAUSE_S		10
#define LOOK_AGAIN_MS			1000	/* whether a pause is over, and what came in it was read */
#define KEEPALIVE_PROBES		6

/* A host that is known by name. */
typedef struct Host
{
	char		name[HOST_SIZE];	/* hash key */
	HttpExchange *leader;		/* looks the name up; NULL: nobody does */
	dlist_head	waiting;		/* exchanges that wait for the leader */
	TimestampTz known_until;
} Host;

struct HttpExchange
{
	CURL	   *easy;
	struct curl_slist *headers;
	const char *token;			/* within headers, or NULL */
	const char *request;
	size_t		request_length;
	size_t		request_sent;
	char	   *body;
	size_t		length;
	size_t		allocated;
	size_t		limit;			/* of the body, or of a message */
	size_t		more_body;		/* of the body above it */
	MessageStream *messages;	/* takes the body, if that is a stream */
	bool		arrived;		/* something for it, which was not looked at */
	dlist_node	arrived_node;	/* then */
	bool		paused;
	bool		braked;			/* paused, since what comes brings nothing */
	EventTimer	go_on;			/* after a pause */
	EventTimer	deadline;		/* of one that may be a stream; libcurl's own goes on in pauses */
	bool		ended;			/* but it has messages still */
	CURLcode	end;
	bool		started;		/* given to libcurl */
	Host	   *host;			/* NULL: the URL has an address */
	dlist_node	node;			/* in host->waiting, unless it was started */
	EventTimer	give_up;		/* while it waits */
	bool		looked_up;		/* there is an address to connect to */
	bool		too_large;
	bool		address_refused;
	bool		held_back;		/* connected, but not allowed to send anything */
	bool		plain;
	const PolicyNetwork *allowed;
	size_t		allowed_count;
	HttpDone	done;
	HttpMessage message;
	void	   *arg;
	char		problem[CURL_ERROR_SIZE];
};

static CURLM *multi;
static EventTimer multi_timer;
static HTAB *hosts;
static dlist_head arrived = DLIST_STATIC_INIT(arrived); /* exchanges */
static bool looked_up = false;	/* a leader is through since that was last seen to */

static Host *host_of(const char *url);
static bool start(HttpExchange *exchange, bool look_up);
static void let_go(void);
static void start_first(Host *host, bool look_up);
static void on_give_up(void *arg);
static void on_deadline(void *arg);
static bool set_options(HttpExchange *exchange, const HttpRequest *request);
static int64 connect_timeout(const HttpRequest *request);
static bool add_header(HttpExchange *exchange, const char *name, const char *value);
static void drive(curl_socket_t fd, int events);
static void hand_over_arrived(void);
static bool hand_over(HttpExchange *exchange);
static void stand_still(HttpExchange *exchange, bool braked);
static CURLcode pause_transfer(HttpExchange *exchange, int directions);
static void on_go_on(void *arg);
static void collect_finished(void);
static void finish(HttpExchange *exchange, CURLcode code);
static void tell(HttpExchange *exchange, CURLcode code);
static void free_exchange(HttpExchange *exchange);
static const char *phase_of(HttpExchange *exchange);
static void block_signals(sigset_t *saved);

/* callbacks of libcurl */
static int	on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg);
static int	on_timer(CURLM *m, long timeout_ms, void *arg);
static size_t on_body(char *data, size_t size, size_t count, void *arg);
static size_t collect_whole(HttpExchange *exchange, const char *data, size_t bytes);
static MessageFormat format_of(HttpExchange *exchange);
static size_t on_request_body(char *buffer, size_t size, size_t count, void *arg);
static curl_socket_t on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address);
static curl_socket_t open_socket(const struct curl_sockaddr *address);
static int	on_connected(void *arg, char *address, char *local_address, int port, int local_port);

/* of the event loop */
static void on_ready(int fd, uint32 events, void *arg);
static void on_multi_timer(void *arg);

void
http_client_init(void)
{
	HASHCTL		ctl;
	sigset_t	saved;
	bool		ok;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = HOST_SIZE;
	ctl.entrysize = sizeof(Host);
	hosts = hash_create("leasehold hosts", 16, &ctl, HASH_ELEM | HASH_STRINGS);

	block_signals(&saved);
	ok = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK && (multi = curl_multi_init()) != NULL &&
		curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket) == CURLM_OK &&
		curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer) == CURLM_OK &&
		curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) setting_max_concurrent_calls) == CURLM_OK;
	sigprocmask(SIG_SETMASK, &saved, NULL);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("could not initialize libcurl")));
	multi_timer.fire = on_multi_timer;
}

HttpExchange *
http_post(const HttpRequest *request, const char **problem)
{
	HttpExchange *exchange;
	Host	   *host = host_of(request->url);
	bool		known = host == NULL || event_loop_clock() < host->known_until;
	sigset_t	saved;
	bool		ok;

	if (!known && host->leader == NULL && http_resolver_threads() > MAX_RESOLVER_THREADS)
	{
		*problem = "too many name resolutions hang";
		return NULL;
	}

	block_signals(&saved);
	exchange = calloc(1, sizeof(HttpExchange));
	ok = exchange != NULL && (exchange->easy = curl_easy_init()) != NULL && set_options(exchange, request);
	sigprocmask(SIG_SETMASK, &saved, NULL);
	if (ok)
	{
		exchange->host = host;
		if (known || host->leader == NULL)
			ok = start(exchange, !known);
		else
		{
			dlist_push_tail(&host->waiting, &exchange->node);
			exchange->give_up.fire = on_give_up;
			exchange->give_up.arg = exchange;
			event_loop_set_timer(&exchange->give_up, connect_timeout(request));
		}
	}
	if (ok && request->message != NULL && request->timeout_ms > 0)
		event_loop_set_timer(&exchange->deadline, request->timeout_ms);
	if (!ok)
	{
		if (exchange != NULL)
			free_exchange(exchange);
		*problem = "out of memory for an HTTP request";
		return NULL;
	}
	return exchange;
}

/* The host of a URL, or NULL if that is an address. */
static Host *
host_of(const char *url)
{
	const char *begin = strstr(url, "://");
	char		name[HOST_SIZE];
	struct in_addr address;
	size_t		length;
	Host	   *host;
	bool		found;

	begin = begin ? begin + 3 : url;
	length = Min(strcspn(begin, ":/?#"), sizeof(name) - 1);
	if (*begin == '[')
		return NULL;
	for (size_t i = 0; i < length; i++)
		name[i] = pg_ascii_tolower((unsigned char) begin[i]);
	name[length] = '\0';
	if (inet_pton(AF_INET, name, &address) == 1)
		return NULL;

	host = hash_search(hosts, name, HASH_ENTER, &found);
	if (!found)
	{
		host->leader = NULL;
		dlist_init(&host->waiting);
		host->known_until = 0;
	}
	return host;
}

/*
 * Gives an exchange to libcurl.  One that looks the name up must not use an
 * open connection, since it would learn nothing.
 */
static bool
start(HttpExchange *exchange, bool look_up)
{
	sigset_t	saved;

	block_signals(&saved);
	exchange->started = (!look_up || curl_easy_setopt(exchange->easy, CURLOPT_FRESH_CONNECT, 1L) == CURLE_OK) &&
		curl_multi_add_handle(multi, exchange->easy) == CURLM_OK;
	sigprocmask(SIG_SETMASK, &saved, NULL);
	if (exchange->started && look_up)
		exchange->host->leader = exchange;
	return exchange->started;
}

/* Names were looked up: those that waited for that go on. */
static void
let_go(void)
{
	HASH_SEQ_STATUS seq;
	Host	   *host;

	looked_up = false;
	hash_seq_init(&seq, hosts);
	while ((host = hash_seq_search(&seq)) != NULL)
	{
		if (host->leader == NULL || !host->leader->looked_up)
			continue;
		host->leader = NULL;
		host->known_until = event_loop_clock() + TRUST_ADDRESS_S * INT64CONST(1000000);
		while (!dlist_is_empty(&host->waiting))
			start_first(host, false);
	}
}

/* The first that waits need not any more. */
static void
start_first(Host *host, bool look_up)
{
	HttpExchange *exchange = dlist_container(HttpExchange, node, dlist_head_node(&host->waiting));

	if (start(exchange, look_up))
	{
		dlist_delete(&exchange->node);
		event_loop_cancel_timer(&exchange->give_up);
	}
	else
		finish(exchange, CURLE_OUT_OF_MEMORY);
}

static void
on_give_up(void *arg)
{
	finish(arg, CURLE_OPERATION_TIMEDOUT);
}

static bool
set_options(HttpExchange *exchange, const HttpRequest *request)
{
	CURL	   *easy = exchange->easy;

	exchange->request = request->body;
	exchange->request_length = request->length;
	exchange->limit = (size_t) setting_max_response_size * 1024;
	exchange->more_body = request->more_body;
	exchange->plain = policy_url_is_plain(request->url);
	exchange->allowed = request->allowed;
	exchange->allowed_count = request->allowed_count;
	exchange->done = request->done;
	exchange->message = request->message;
	exchange->arg = request->arg;
	exchange->go_on.fire = on_go_on;
	exchange->deadline.fire = on_deadline;
	exchange->go_on.arg = exchange->deadline.arg = exchange;

	if (!add_header(exchange, "Content-Type", "application/json") ||
		!add_header(exchange, "Accept", request->message ? "application/json, application/x-ndjson, text/event-stream" :
					"application/json") ||
		!add_header(exchange, "Expect", NULL) ||
		!add_header(exchange, "Leasehold-Request-Id", request->request_id) ||
		(request->idempotency_key && !add_header(exchange, "Idempotency-Key", request->idempotency_key)))
		return false;
	if (request->token != NULL)
	{
		char		bearer[4200];
		bool		added;
		struct curl_slist *last;

		snprintf(bearer, sizeof(bearer), "Bearer %s", request->token);
		added = add_header(exchange, "Authorization", bearer);
		explicit_bzero(bearer, sizeof(bearer));
		if (!added)
			return false;
		for (last = exchange->headers; last->next != NULL; last = last->next)
			 /* the header that was added */ ;
		exchange->token = last->data + strlen("Authorization: Bearer ");
	}

#define SET(option, value) (curl_easy_setopt(easy, option, value) == CURLE_OK)
	return SET(CURLOPT_URL, request->url) &&
		SET(CURLOPT_PRIVATE, exchange) &&
		SET(CURLOPT_NOSIGNAL, 1L) &&
		SET(CURLOPT_PROTOCOLS_STR, exchange->plain ? "http" : "https") &&
		SET(CURLOPT_FOLLOWLOCATION, 0L) &&
		SET(CURLOPT_PROXY, "") &&
		SET(CURLOPT_POST, 1L) &&
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->length) &&
		SET(CURLOPT_READFUNCTION, on_request_body) &&
		SET(CURLOPT_READDATA, exchange) &&
		SET(CURLOPT_HTTPHEADER, exchange->headers) &&
		SET(CURLOPT_WRITEFUNCTION, on_body) &&
		SET(CURLOPT_WRITEDATA, exchange) &&
		SET(CURLOPT_ERRORBUFFER, exchange->problem) &&
		SET(CURLOPT_OPENSOCKETFUNCTION, on_open_socket) &&
		SET(CURLOPT_OPENSOCKETDATA, exchange) &&
		SET(CURLOPT_PREREQFUNCTION, on_connected) &&
		SET(CURLOPT_PREREQDATA, exchange) &&
		SET(CURLOPT_TIMEOUT_MS, request->message ? 0L : (long) Min(request->timeout_ms, LONG_MAX)) &&
		SET(CURLOPT_CONNECTTIMEOUT_MS, (long) connect_timeout(request)) &&
		SET(CURLOPT_MAXAGE_CONN, (long) IDLE_CONNECTION_S) &&
		SET(CURLOPT_DNS_CACHE_TIMEOUT, (long) KEEP_ADDRESS_S) &&
		SET(CURLOPT_FRESH_CONNECT, request->fresh_connection ? 1L : 0L) &&
		SET(CURLOPT_FORBID_REUSE, request->fresh_connection ? 1L : 0L) &&
		SET(CURLOPT_QUICK_EXIT, 1L) &&
		SET(CURLOPT_USERAGENT, "leasehold/" LEASEHOLD_VERSION) &&
		(setting_ca_file == NULL || setting_ca_file[0] == '\0' || SET(CURLOPT_CAINFO, setting_ca_file));
#undef SET
}

static int64
connect_timeout(const HttpRequest *request)
{
	return request->timeout_ms == 0 ? setting_connect_timeout : Min(setting_connect_timeout, request->timeout_ms);
}

/* A NULL value takes a header out that libcurl would send by itself. */
static bool
add_header(HttpExchange *exchange, const char *name, const char *value)
{
	char		line[4400];
	struct curl_slist *list;

	if ((size_t) snprintf(line, sizeof(line), value ? "%s: %s" : "%s:", name, value) >= sizeof(line))
		return false;
	list = curl_slist_append(exchange->headers, line);
	explicit_bzero(line, sizeof(line));
	if (list == NULL)
		return false;
	exchange->headers = list;
	return true;
}

bool
http_may_be_sent(HttpExchange *exchange)
{
	curl_off_t	sent_at = 0;

	if (!exchange->started || exchange->held_back)
		return false;
	curl_easy_getinfo(exchange->easy, CURLINFO_PRETRANSFER_TIME_T, &sent_at);
	return sent_at != 0 || exchange->request_sent > 0;
}

void
http_abandon(HttpExchange *exchange)
{
	Host	   *host = exchange->host;
	bool		led = host != NULL && host->leader == exchange;
	sigset_t	saved;

	block_signals(&saved);
	if (exchange->started)
		curl_multi_remove_handle(multi, exchange->easy);
	sigprocmask(SIG_SETMASK, &saved, NULL);
	if (!exchange->started)
	{
		event_loop_cancel_timer(&exchange->give_up);
		dlist_delete(&exchange->node);
	}
	free_exchange(exchange);

	/* another one looks the name up */
	if (led)
		host->leader = NULL;
	while (led && host->leader == NULL && !dlist_is_empty(&host->waiting))
		start_first(host, true);
}

static void
free_exchange(HttpExchange *exchange)
{
	sigset_t	saved;

	event_loop_cancel_timer(&exchange->go_on);
	event_loop_cancel_timer(&exchange->deadline);
	if (exchange->arrived)
		dlist_delete(&exchange->arrived_node);
	block_signals(&saved);
	for (struct curl_slist *h = exchange->headers; h != NULL; h = h->next)
		explicit_bzero(h->data, strlen(h->data));
	curl_slist_free_all(exchange->headers);
	if (exchange->easy != NULL)
		curl_easy_cleanup(exchange->easy);
	sigprocmask(SIG_SETMASK, &saved, NULL);
	message_stream_free(exchange->messages);
	free(exchange->body);
	free(exchange);
}

static void
on_ready(int fd, uint32 events, void *arg)
{
	drive(fd, ((events & EPOLLIN) ? CURL_CSELECT_IN : 0) | ((events & EPOLLOUT) ? CURL_CSELECT_OUT : 0) |
		  ((events & (EPOLLERR | EPOLLHUP)) ? CURL_CSELECT_ERR : 0));
}

static void
on_multi_timer(void *arg)
{
	drive(CURL_SOCKET_TIMEOUT, 0);
}

static void
drive(curl_socket_t fd, int events)
{
	sigset_t	saved;
	int			running;

	block_signals(&saved);
	(void) curl_multi_socket_action(multi, fd, events, &running);
	sigprocmask(SIG_SETMASK, &saved, NULL);
	if (looked_up)
		let_go();
	hand_over_arrived();
	collect_finished();
}

/* Of the exchanges to which something came, the messages that are complete. */
static void
hand_over_arrived(void)
{
	while (!dlist_is_empty(&arrived))
	{
		HttpExchange *exchange = dlist_container(HttpExchange, arrived_node, dlist_pop_head_node(&arrived));

		exchange->arrived = false;
		(void) hand_over(exchange);
	}
}

/* False if that was the exchange's end. */
static bool
hand_over(HttpExchange *exchange)
{
	while (!exchange->paused)
	{
		char	   *message;
		size_t		length;
		MessageState state = message_stream_next(exchange->messages, &message, &length);

		if (state == MESSAGE_NONE)
			break;
		if (state != MESSAGE_READY)
		{
			exchange->too_large = state == MESSAGE_TOO_LARGE;
			tell(exchange, CURLE_WRITE_ERROR);
			return false;
		}
		switch (exchange->message(exchange->arg, message, length, exchange->token))
		{
			case HTTP_GO_ON:
				break;
			case HTTP_PAUSE:
				stand_still(exchange, false);
				break;
			case HTTP_BRAKE:
				stand_still(exchange, true);
				break;
			case HTTP_ENOUGH:
				http_abandon(exchange);
				return false;
		}
	}
	return true;
}

static void
stand_still(HttpExchange *exchange, bool braked)
{
	exchange->paused = true;
	exchange->braked = braked;
	if (!exchange->ended)
		(void) pause_transfer(exchange, CURLPAUSE_RECV);
}

static CURLcode
pause_transfer(HttpExchange *exchange, int directions)
{
	sigset_t	saved;
	CURLcode	code;

	block_signals(&saved);
	code = curl_easy_pause(exchange->easy, directions);
	sigprocmask(SIG_SETMASK, &saved, NULL);
	return code;
}

void
http_resume(HttpExchange *exchange)
{
	if (exchange->paused)
		event_loop_set_timer(&exchange->go_on, 0);
}

static void
on_go_on(void *arg)
{
	HttpExchange *exchange = arg;
	CURLcode	code;

	exchange->paused = false;
	if (!hand_over(exchange) || exchange->paused)
		return;
	code = exchange->ended ? exchange->end : pause_transfer(exchange, CURLPAUSE_CONT);
	if (exchange->ended || code != CURLE_OK)
		finish(exchange, code);
	else
		/* what libcurl has kept comes at once */
		hand_over_arrived();
}

/* What came while it was paused, on our account, is looked at first. */
static void
on_deadline(void *arg)
{
	HttpExchange *exchange = arg;

	if (exchange->paused && !exchange->braked)
		event_loop_set_timer(&exchange->deadline, LOOK_AGAIN_MS);
	else if (!exchange->ended)
		finish(exchange, CURLE_OPERATION_TIMEDOUT);
}

static void
collect_finished(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		HttpExchange *exchange = NULL;
		CURLcode	code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &exchange);
		finish(exchange, code);
	}
}

/* Messages come first, and may have to wait. */
static void
finish(HttpExchange *exchange, CURLcode code)
{
	if (exchange->messages != NULL)
	{
		exchange->ended = true;
		exchange->end = code;
		if (code == CURLE_OK)
			message_stream_end(exchange->messages);
		if (!hand_over(exchange) || exchange->paused)
			return;
	}
	tell(exchange, code);
}

/* The end of an exchange. */
static void
tell(HttpExchange *exchange, CURLcode code)
{
	HttpResponse response;
	struct curl_header *header;

	memset(&response, 0, sizeof(response));
	response.answered = code == CURLE_OK;
	response.body = exchange->body;
	response.length = exchange->length;
	response.in_messages = exchange->messages != NULL;
	response.too_large = exchange->too_large;
	response.token = exchange->token;
	curl_easy_getinfo(exchange->easy, CURLINFO_RESPONSE_CODE, &response.status);
	if (curl_easy_header(exchange->easy, "Retry-After", 0, CURLH_HEADER, -1, &header) == CURLHE_OK)
		response.retry_after = header->value;
	if (!response.answered)
	{
		response.progress = http_may_be_sent(exchange) ? HTTP_MAYBE_SENT : HTTP_NOT_SENT;
		/* of several addresses one may have been refused, and another used */
		if (response.progress == HTTP_MAYBE_SENT)
			exchange->address_refused = false;
		response.timed_out = code == CURLE_OPERATION_TIMEDOUT;
		response.phase = exchange->address_refused ? "connection" : phase_of(exchange);
		if (exchange->address_refused)
			response.problem = "the address is not allowed for this plugin";
		else if (exchange->too_large)
			response.problem = "the answer is too large";
		else
			response.problem = curl_easy_strerror(code);
	}

	exchange->done(exchange->arg, &response);

	/* a name that does not exist does so for nobody */
	if (exchange->host != NULL && exchange->host->leader == exchange && code == CURLE_COULDNT_RESOLVE_HOST)
	{
		while (!dlist_is_empty(&exchange->host->waiting))
			finish(dlist_container(HttpExchange, node, dlist_head_node(&exchange->host->waiting)), code);
	}
	http_abandon(exchange);
}

/* What was under way when a request ended without an answer. */
static const char *
phase_of(HttpExchange *exchange)
{
	/*
	 * libcurl counts a TLS handshake as part of the connection until both are
	 * there
	 */
	const struct
	{
		CURLINFO	info;
		const char *until;
	}			phases[] = {
		{CURLINFO_NAMELOOKUP_TIME_T, "name resolution"},
		{CURLINFO_CONNECT_TIME_T, exchange->plain ? "connection" : "connection or TLS handshake"},
		{CURLINFO_PRETRANSFER_TIME_T, "TLS handshake"},
		{CURLINFO_STARTTRANSFER_TIME_T, "wait for the answer"},
	};

	for (int i = 0; i < (int) lengthof(phases); i++)
	{
		curl_off_t	time = 0;

		curl_easy_getinfo(exchange->easy, phases[i].info, &time);
		if (time == 0)
			return phases[i].until;
	}
	return "transfer of the answer";
}

int
http_resolver_threads(void)
{
	static int64 looked_at = 0;
	static int	threads = 0;
	int64		now = event_loop_clock();
	DIR		   *dir;

	/* one look a second is enough to keep a count from running away */
	if (looked_at != 0 && now - looked_at < 1000000)
		return threads;
	looked_at = now;
	threads = -3;				/* ".", ".." and this thread */
	dir = opendir("/proc/self/task");
	if (dir == NULL)
		return threads = 0;
	while (readdir(dir) != NULL)
		threads++;
	closedir(dir);
	return threads;
}

static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, saved);
}

/*
 * libcurl tells which descriptors it wants watched.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	EventWatch *watch = socket_arg;
	uint32		events = 0;

	if (what == CURL_POLL_REMOVE)
	{
		if (watch != NULL)
		{
			curl_multi_assign(multi, fd, NULL);
			event_loop_remove(watch);
		}
		return 0;
	}
	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= EPOLLIN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= EPOLLOUT;
	if (watch != NULL)
		return event_loop_change(watch, events) ? 0 : -1;

	watch = event_loop_add(fd, events, on_ready, NULL);
	if (watch == NULL)
		return -1;
	curl_multi_assign(multi, fd, watch);
	return 0;
}

static int
on_timer(CURLM *m, long timeout_ms, void *arg)
{
	if (timeout_ms < 0)
		event_loop_cancel_timer(&multi_timer);
	else
		event_loop_set_timer(&multi_timer, timeout_ms);
	return 0;
}

static size_t
on_body(char *data, size_t size, size_t count, void *arg)
{
	HttpExchange *exchange = arg;
	size_t		bytes = size * count;

	if (exchange->messages == NULL && exchange->length == 0)
	{
		MessageFormat format = format_of(exchange);

		if (format != MESSAGE_WHOLE &&
			(exchange->messages = message_stream_new(format, exchange->limit)) == NULL)
			return 0;
	}
	if (exchange->messages == NULL)
		return collect_whole(exchange, data, bytes);
	if (!message_stream_add(exchange->messages, data, bytes))
		return 0;
	if (!exchange->arrived)
	{
		dlist_push_tail(&arrived, &exchange->arrived_node);
		exchange->arrived = true;
	}
	return bytes;
}

static MessageFormat
format_of(HttpExchange *exchange)
{
	long		status = 0;
	const char *content_type = NULL;

	if (exchange->message == NULL)
		return MESSAGE_WHOLE;
	curl_easy_getinfo(exchange->easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(exchange->easy, CURLINFO_CONTENT_TYPE, &content_type);
	return status == 200 ? message_format_of(content_type) : MESSAGE_WHOLE;
}

static size_t
collect_whole(HttpExchange *exchange, const char *data, size_t bytes)
{
	if (bytes > exchange->limit + exchange->more_body - exchange->length)
	{
		exchange->too_large = true;
		return 0;
	}
	if (exchange->length + bytes > exchange->allocated)
	{
		size_t		allocated = exchange->allocated ? exchange->allocated : 1024;
		char	   *body;

		while (allocated < exchange->length + bytes)
			allocated *= 2;
		body = realloc(exchange->body, allocated);
		if (body == NULL)
			return 0;
		exchange->body = body;
		exchange->allocated = allocated;
	}
	memcpy(exchange->body + exchange->length, data, bytes);
	exchange->length += bytes;
	return bytes;
}

static size_t
on_request_body(char *buffer, size_t size, size_t count, void *arg)
{
	HttpExchange *exchange = arg;
	size_t		bytes = exchange->request_length - exchange->request_sent;

	if (bytes > size * count)
		bytes = size * count;
	memcpy(buffer, exchange->request + exchange->request_sent, bytes);
	exchange->request_sent += bytes;
	return bytes;
}

/*
 * The socket is opened for the very address that will be connected to.
 */
static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	HttpExchange *exchange = arg;

	exchange->looked_up = true;
	if (exchange->host != NULL && exchange->host->leader == exchange)
		looked_up = true;
	if (purpose != CURLSOCKTYPE_IPCXN ||
		!policy_address_allowed(&address->addr, exchange->plain, exchange->allowed, exchange->allowed_count))
	{
		exchange->address_refused = true;
		return CURL_SOCKET_BAD;
	}
	return open_socket(address);
}

/*
 * An answer may take hours: that its host is gone without a word is found out by
 * probes, after KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_PAUSE_S.
 */
static curl_socket_t
open_socket(const struct curl_sockaddr *address)
{
	curl_socket_t fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	const struct
	{
		int			level;
		int			name;
		int			value;
	}			options[] = {
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
		{IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_PAUSE_S},
		{IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
	};

	for (int i = 0; fd != CURL_SOCKET_BAD && i < (int) lengthof(options); i++)
		(void) setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
	return fd;
}

/*
 * Before the request is sent: the connection may be one that another plugin,
 * to which more is allowed, has left behind.
 */
static int
on_connected(void *arg, char *address, char *local_address, int port, int local_port)
{
	HttpExchange *exchange = arg;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	const struct sockaddr *peer = NULL;

	memset(&in, 0, sizeof(in));
	memset(&in6, 0, sizeof(in6));
	if (inet_pton(AF_INET, address, &in.sin_addr) == 1)
	{
		in.sin_family = AF_INET;
		peer = (const struct sockaddr *) &in;
	}
	else if (inet_pton(AF_INET6, address, &in6.sin6_addr) == 1)
	{
		in6.sin6_family = AF_INET6;
		peer = (const struct sockaddr *) &in6;
	}
	if (peer == NULL ||
		!policy_address_allowed(peer, exchange->plain, exchange->allowed, exchange->allowed_count))
	{
		exchange->address_refused = exchange->held_back = true;
		return CURL_PREREQFUNC_ABORT;
	}
	return CURL_PREREQFUNC_OK;
}
