# What the worker's SQL may do, and what the settings of a database do to it.
#
# Whoever can put a trigger on our tables, or a setting on the database, must not
# get more by it than the worker's role has, nor change what is written.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup;
my $provider = Leasehold::Provider->start($node)->register($node);
$node->environment('dev', 'box');

# Ways to become the superuser that the process was connected as.
my @ways = ('SET SESSION AUTHORIZATION postgres', 'SET SESSION AUTHORIZATION DEFAULT', 'SET ROLE postgres', 'RESET ROLE');
my @tables = qw(leasehold.leases leasehold.audit_events leasehold.plugins leasehold_internal.calls
  leasehold_internal.provider_resources);

subtest 'SQL runs as the worker\'s role, which cannot become another' => sub {
	$node->owner(
		sprintf q(
		CREATE TABLE public.seen (pid integer, relation text, operation text, who name, way text, outcome text);
		GRANT INSERT ON public.seen TO PUBLIC;
		CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE
			v_before name := current_user;
			v_state  text;
			v_way    text;
		BEGIN
			FOREACH v_way IN ARRAY ARRAY[%s] LOOP
				v_state := 'went through';
				BEGIN
					EXECUTE v_way;
				EXCEPTION WHEN OTHERS THEN
					v_state := SQLSTATE;
				END;
				INSERT INTO public.seen
				VALUES (pg_backend_pid(), TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, TG_OP, v_before, v_way,
						v_state || CASE WHEN current_user <> v_before THEN ', now ' || current_user ELSE '' END);
			END LOOP;
			RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
		END
		$$;), join(', ', map { quote($_) } @ways));
	$node->owner("CREATE TRIGGER a_tell BEFORE INSERT OR UPDATE OR DELETE ON $_ FOR EACH ROW EXECUTE FUNCTION public.tell()")
	  for @tables;

	# all that a worker writes: what it finds at its start, calls, deadlines, lost runs
	my ($first) = $node->workers;
	kill 'TERM', $first;
	eventually { my ($now) = $node->workers; $now && $now != $first } 'a new worker came';
	$node->serving;
	my $run = $node->alice(q(SELECT (leasehold.start_run(heartbeat_timeout => '1 second')).started_run_id));
	my $lost = $node->request("'dev', run_id => '$run'");
	my $short = $node->request(q('dev', ttl => '1 second'));
	$node->boss(q(SELECT leasehold.restart_plugin('box')));
	$node->settles($lost, 'failed', 'a lease ends with its run');
	$node->settles($short, 'expired', 'another by its deadline');
	$node->happens(q(SELECT status = 'ready' FROM leasehold.plugins WHERE key = 'box'), 'the plugin was spoken to');

	my $workers = join ', ', $node->workers;
	my $audit = q(regexp_replace(relation, 'audit_events_\w+$', 'audit_events'));
	is($node->owner("SELECT string_agg(DISTINCT $audit, ' ' ORDER BY $audit) FROM public.seen WHERE pid IN ($workers)"),
		join(' ', sort @tables), 'the worker was seen in every table');
	is($node->owner("SELECT string_agg(DISTINCT who, ' ') FROM public.seen WHERE pid IN ($workers)"), 'leasehold_worker',
		'always as its role');
	is($node->owner("SELECT string_agg(DISTINCT way || ': ' || outcome, '; ') FROM public.seen
			WHERE pid IN ($workers) AND outcome <> '42501'"), '', 'and could not become another');
	$node->owner("DROP TRIGGER a_tell ON $_") for @tables;
};

subtest 'the bounds of partitions do not depend on how times are written' => sub {
	# "IST" is how this writes India's time, and is read as Israel's
	$node->owner('CREATE DATABASE odd');
	$node->owner("ALTER DATABASE odd SET $_") for "datestyle = 'German'", "timezone = 'Asia/Kolkata'", "lc_time = 'C'";
	is($node->owner(q(SELECT to_char(now(), 'TZ') || ' ' || ('IST' = ANY (regexp_split_to_array(now()::text, ' ')))), 'odd'),
		'IST true', 'that is so here');
	$node->install('odd');
	my $partitions = q(FROM pg_inherits AS h JOIN pg_class AS c ON c.oid = h.inhrelid
		WHERE h.inhparent = 'leasehold.audit_events'::regclass AND c.relname ~ '^audit_events_\d{8}$');
	$node->happens("SELECT count(*) = 5 $partitions", 'the worker makes partitions', 'odd');
	is(
		$node->owner(
			"SET timezone = 'UTC'; SET datestyle = 'ISO';
			SELECT string_agg(substr(c.relname, 14) || ' ' || pg_get_expr(c.relpartbound, c.oid), E'\\n' ORDER BY c.relname) $partitions",
			'odd'),
		$node->owner(
			q(SET timezone = 'UTC';
			SELECT string_agg(to_char(w, 'YYYYMMDD') || format(' FOR VALUES FROM (%L) TO (%L)', w, w + interval '7 days'), E'\n' ORDER BY w)
			  FROM generate_series(0, 4) AS i, LATERAL (SELECT date_trunc('week', now(), 'UTC') + i * interval '7 days') AS x (w))),
		'of whole weeks of UTC');
	is($node->owner('SELECT leasehold_internal.make_audit_partitions(6)', 'odd'), 2, 'who makes the next ones');
	is(
		$node->owner("SET timezone = 'UTC'; SELECT count(*) $partitions AND extract(hour FROM
			substring(pg_get_expr(c.relpartbound, c.oid) FROM \$\$FROM \\('([^']+)'\$\$)::timestamptz) = 0", 'odd'),
		7, 'does so in the same way');
};

$provider->obeyed;
done_testing();
