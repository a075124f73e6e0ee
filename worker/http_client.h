/*
 * http_client.h
 *		HTTP requests that run in the event loop, many at a time.
 */
#ifndef LEASEHOLD_HTTP_CLIENT_H
#define LEASEHOLD_HTTP_CLIENT_H

#include <curl/curl.h>

#include "address_policy.h"

typedef struct HttpExchange HttpExchange;

/* How far a request that got no answer had come. */
typedef enum HttpProgress
{
	HTTP_NOT_SENT,				/* nothing of it left this host */
	HTTP_MAYBE_SENT				/* the server may have it */
} HttpProgress;

typedef struct HttpResponse
{
	bool		answered;		/* a complete response came */
	long		status;
	char	   *body;			/* not terminated; NULL if empty, or handed over as messages */
	size_t		length;
	bool		in_messages;
	const char *retry_after;	/* header, or NULL */
	const char *token;			/* what was sent, or NULL */
	HttpProgress progress;		/* if not answered */
	bool		timed_out;
	bool		too_large;
	const char *phase;			/* what was under way when it ended: "name resolution", … */
	const char *problem;		/* what went wrong, without the URL */
} HttpResponse;

typedef void (*HttpDone) (void *arg, const HttpResponse *response);

/* What becomes of an exchange after a message. */
typedef enum HttpNext
{
	HTTP_GO_ON,
	HTTP_PAUSE,					/* no more until http_resume(), and time stands still: we cannot take it */
	HTTP_BRAKE,					/* no more until http_resume(); time goes on: it brings nothing */
	HTTP_ENOUGH					/* it is over: there is no done */
} HttpNext;

/* One message, which may be changed; token: what was sent, or NULL. */
typedef HttpNext (*HttpMessage) (void *arg, char *message, size_t length, const char *token);

typedef struct HttpRequest
{
	const char *url;
	const char *token;			/* bearer, or NULL; copied */
	const char *request_id;
	const char *idempotency_key;	/* or NULL */
	const char *body;			/* JSON; must stay in place */
	size_t		length;
	int64		timeout_ms;		/* 0: as long as it takes; a stream is not cut off while it is paused (HTTP_PAUSE) */
	int64		more_body;		/* bytes that an answer, unless it is a stream, may have above
								 * leasehold.max_response_size */
	bool		fresh_connection;	/* do not use one that the server may be closing */
	const PolicyNetwork *allowed;	/* must stay in place */
	size_t		allowed_count;
	HttpDone	done;
	HttpMessage message;		/* for responses that are streams of messages, or NULL: none is expected */
	void	   *arg;
} HttpRequest;

extern void http_client_init(void);

/*
 * Starts a POST.  done is called once, from the event loop, unless
 * http_abandon() comes first.  Redirects are not followed, proxies not used,
 * answers are capped, or, in streams, each message.  NULL, with a static text,
 * if it could not be started.
 */
extern HttpExchange *http_post(const HttpRequest *request, const char **problem);

/* Whether something of the request may have left this host. */
extern bool http_may_be_sent(HttpExchange *exchange);

/* Goes on after HTTP_PAUSE, soon; may be called at any time but in a foreign callback. */
extern void http_resume(HttpExchange *exchange);

/* Forgets an exchange; not after its end. */
extern void http_abandon(HttpExchange *exchange);

/* Threads of this process that resolve names, those given up included. */
extern int	http_resolver_threads(void);

#endif							/* LEASEHOLD_HTTP_CLIENT_H */
