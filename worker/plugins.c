/*
 * plugins.c
 *		Reads leasehold.plugins when it changed, and tokens when they are used.
 *
 * Tokens come from files that an administrator of the host puts into
 * leasehold.token_directory: never from SQL, and never kept.  They are read for
 * each request, so a rotated token is used at once.
 */
#include "postgres.h"
#include "compat.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "call_limits.h"
#include "plugins.h"
#include "queue.h"
#include "settings.h"
#include "token_file.h"
#include "worker.h"

/* the longest token, a first line, and more, so that a longer token is seen */
#define TOKEN_FILE_SIZE		(3 * PLUGIN_TOKEN_SIZE)

static MemoryContext plugins_context = NULL;
static MemoryContext old_context = NULL;	/* calls that are out may point into it */
static HTAB *plugins = NULL;
static uint64 changes = 1;		/* of what is read here */
static uint64 changes_seen = 0; /* as many as were made before it was read */
static Oid	watched[4];			/* plugins, providers, limits, companies */

static void note_change(Datum arg, Oid relid);
static void watch_tables(void);
static void read_plugins(void);
static void read_limits(void);
static void read_networks(Plugin *plugin, char *text, MemoryContext context);
static bool read_token_file(const Plugin *plugin, char *text, const char **problem);

void
plugins_init(void)
{
	CacheRegisterRelcacheCallback(note_change, (Datum) 0);
}

static void
note_change(Datum arg, Oid relid)
{
	bool		mine = relid == InvalidOid;

	for (int i = 0; i < (int) lengthof(watched); i++)
		mine |= relid == watched[i];
	if (mine)
		changes++;
}

void
plugins_forget(void)
{
	changes++;
}

void
plugins_refresh(void)
{
	uint64		now;

	AcceptInvalidationMessages();
	now = changes;
	if (changes_seen == now)
		return;
	watch_tables();

	/*
	 * with snapshots of their own: newer than the round's, which may not see
	 * it
	 */
	read_plugins();
	read_limits();
	/* what changed while they were read, or could not be read, is read again */
	changes_seen = now;
}

bool
plugin_is_current(const char *key, TransactionId row)
{
	const Plugin *plugin = plugin_find(key);

	return plugin != NULL && plugin->row == row;
}

static void
watch_tables(void)
{
	Oid			schema = get_namespace_oid("leasehold", false);

	watched[0] = get_relname_relid("plugins", schema);
	watched[1] = get_relname_relid("providers", schema);
	watched[2] = get_relname_relid("limits", schema);
	watched[3] = get_relname_relid("companies", schema);
}

static void
read_plugins(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "leasehold plugins", ALLOCSET_SMALL_SIZES);
	HTAB	   *found;
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(((Plugin *) NULL)->key);
	ctl.entrysize = sizeof(Plugin);
	ctl.hcxt = context;
	found = hash_create("leasehold plugins", 16, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);

	if (SPI_execute("SELECT p.key, p.transport ->> 'url', p.transport ->> 'token_file',"
					" pg_catalog.array_to_string(p.allow_addresses, ' '),"
					" 'environmentFindLease' = ANY (p.supported_methods),"
					" 'environmentCancelExecute' = ANY (p.supported_methods), p.xmin"
					" FROM leasehold.plugins AS p", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the plugins");

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *key = SPI_getvalue(row, desc, 1);
		char	   *url = SPI_getvalue(row, desc, 2);
		char	   *token_file = SPI_getvalue(row, desc, 3);
		char	   *networks = SPI_getvalue(row, desc, 4);
		bool		isnull;
		char		name[64];
		Plugin	   *plugin;

		strlcpy(name, key, sizeof(name));
		plugin = hash_search(found, name, HASH_ENTER, NULL);
		plugin->url = MemoryContextStrdup(context, url ? url : "");
		plugin->token_file = token_file ? MemoryContextStrdup(context, token_file) : NULL;
		plugin->looks_up = DatumGetBool(SPI_getbinval(row, desc, 5, &isnull));
		plugin->cancels = DatumGetBool(SPI_getbinval(row, desc, 6, &isnull));
		plugin->row = DatumGetTransactionId(SPI_getbinval(row, desc, 7, &isnull));
		read_networks(plugin, networks ? networks : "", context);
	}

	/* calls begun before the last refresh have their own copies by now */
	if (old_context != NULL)
		MemoryContextDelete(old_context);
	old_context = plugins_context;
	MemoryContextSetParent(context, TopMemoryContext);
	plugins_context = context;
	plugins = found;
}

static void
read_networks(Plugin *plugin, char *text, MemoryContext context)
{
	char	   *save;

	plugin->allowed = MemoryContextAllocZero(context, (strlen(text) / 2 + 1) * sizeof(PolicyNetwork));
	plugin->allowed_count = 0;
	for (char *word = strtok_r(text, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save))
	{
		if (policy_parse_network(word, &plugin->allowed[plugin->allowed_count]))
			plugin->allowed_count++;
	}
}

/* What call_limits.c goes by. */
static void
read_limits(void)
{
	bool		several_companies;

	if (SPI_execute("SELECT FROM leasehold.companies AS c WHERE c.status = 'active'", false, 2) != SPI_OK_SELECT)
		elog(ERROR, "could not count the companies");
	several_companies = SPI_processed > 1;
	if (SPI_execute("SELECT l.company_id, l.provider, l.value, l.name = 'concurrent_commands' FROM leasehold.limits AS l"
					" WHERE l.name IN ('concurrent_calls', 'concurrent_commands') AND l.environment_id = leasehold_internal.no_company()",
					false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the limits");

	call_limits_reset(worker.capacity, several_companies);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		call_limits_set(DatumGetBool(SPI_getbinval(row, desc, 4, &isnull)) ? LANE_COMMANDS : LANE_CALLS,
						DatumGetUUIDP(SPI_getbinval(row, desc, 1, &isnull)), SPI_getvalue(row, desc, 2),
						DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull)));
	}
	queue_limits_changed();
}

const Plugin *
plugin_find(const char *key)
{
	char		name[64];

	if (plugins == NULL)
		return NULL;
	strlcpy(name, key, sizeof(name));
	return hash_search(plugins, name, HASH_FIND, NULL);
}

bool
plugin_read_token(const Plugin *plugin, char *token, const char **code, const char **problem)
{
	char		text[TOKEN_FILE_SIZE];
	char	   *found;
	bool		elsewhere = false;

	token[0] = '\0';
	if (plugin->token_file == NULL)
		return true;
	found = read_token_file(plugin, text, problem) ?
		token_file_parse(text, plugin->url, &elsewhere, problem) : NULL;
	if (found != NULL && strlcpy(token, found, PLUGIN_TOKEN_SIZE) >= PLUGIN_TOKEN_SIZE)
	{
		*problem = "the token is too long";
		explicit_bzero(token, PLUGIN_TOKEN_SIZE);
	}
	*code = elsewhere ? "token_not_for_origin" : "token_unavailable";
	explicit_bzero(text, sizeof(text));
	return token[0] != '\0';
}

/* The text of a file that can be trusted, with an end. */
static bool
read_token_file(const Plugin *plugin, char *text, const char **problem)
{
	char		path[MAXPGPATH];
	struct stat st;
	int			fd;
	ssize_t		length = -1;

	if (setting_token_directory == NULL || setting_token_directory[0] == '\0')
	{
		*problem = "leasehold.token_directory is not set";
		return false;
	}
	if ((size_t) snprintf(path, sizeof(path), "%s/%s", setting_token_directory, plugin->token_file) >= sizeof(path))
	{
		*problem = "the path of the token file is too long";
		return false;
	}
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
	{
		*problem = "the token file cannot be opened";
		return false;
	}
	if (fstat(fd, &st) != 0)
		*problem = "the token file cannot be read";
	else if ((*problem = token_file_untrusted(&st, geteuid())) == NULL)
	{
		length = read(fd, text, TOKEN_FILE_SIZE - 1);
		if (length < 0)
			*problem = "the token file cannot be read";
	}
	close(fd);
	if (length < 0)
		return false;
	text[length] = '\0';
	return true;
}
