# An upgraded installation is what a new one is, keeps its rows and what was
# granted, and is served again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;
use Leasehold::Provider;

my $node = Leasehold::Node->new('main')->setup(extension => 0);
my ($share) = run_command([ 'pg_config', '--sharedir' ]);
my ($current) = slurp_file("$share/extension/leasehold.control") =~ /^default_version = '([^']+)'/m;
my @released = grep { $_ ne $current } map { m{--([\d.]+)\.sql$} } glob "$share/extension/leasehold--*.sql";
my $provider = Leasehold::Provider->start($node);

# Everything that belongs to the extension, one line for each fact.
my $FACTS = q(
	WITH member AS (
		SELECT d.classid, d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'leasehold'
		 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	), relation AS (
		SELECT c.*, c.oid::regclass::text AS name FROM pg_class AS c
		  JOIN member AS m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
	), acl AS (
		SELECT 'pg_class'::regclass AS class, r.oid, r.relacl AS acl FROM relation AS r
		UNION ALL SELECT 'pg_proc'::regclass, p.oid, p.proacl FROM pg_proc AS p
		UNION ALL SELECT 'pg_namespace'::regclass, n.oid, n.nspacl FROM pg_namespace AS n
		UNION ALL SELECT 'pg_type'::regclass, t.oid, t.typacl FROM pg_type AS t
	)
	SELECT 'member ' || i.type || ' ' || i.identity || ' comment ' || COALESCE(obj_description(m.objid, m.classid::regclass::name), '-')
	  FROM member AS m, pg_identify_object(m.classid, m.objid, 0) AS i
	UNION ALL
	SELECT 'grant ' || i.identity || ' ' || a.privilege_type || ' to ' || a.grantee::regrole || ' by ' || a.grantor::regrole
	  FROM member AS m JOIN acl ON acl.class = m.classid AND acl.oid = m.objid
	 CROSS JOIN LATERAL aclexplode(acl.acl) AS a CROSS JOIN LATERAL pg_identify_object(m.classid, m.objid, 0) AS i
	UNION ALL
	SELECT 'open ' || i.identity FROM member AS m JOIN acl ON acl.class = m.classid AND acl.oid = m.objid
	 CROSS JOIN LATERAL pg_identify_object(m.classid, m.objid, 0) AS i WHERE acl.acl IS NULL
	UNION ALL
	SELECT 'function ' || p.proowner::regrole || ' ' || pg_get_functiondef(p.oid)
	  FROM member AS m JOIN pg_proc AS p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	UNION ALL
	SELECT 'relation ' || r.name || ' ' || r.relowner::regrole || ' ' || r.relkind::text || ' ' || r.relrowsecurity || r.relforcerowsecurity
		   || ' ' || COALESCE(array_to_string(r.reloptions, ','), '') || COALESCE(' ' || pg_get_viewdef(r.oid), '')
	  FROM relation AS r
	UNION ALL
	-- new columns come last
	SELECT 'column ' || r.name || ' ' || (row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum)) || ' ' || a.attname || ' '
		   || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' || COALESCE(pg_get_expr(d.adbin, d.adrelid), '')
		   || ' ' || COALESCE(a.attacl::text, '') || ' ' || COALESCE(col_description(r.oid, a.attnum), '')
	  FROM relation AS r JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
	  LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
	UNION ALL
	SELECT 'constraint ' || COALESCE(r.name, c.contypid::regtype::text) || ' ' || c.conname || ' ' || pg_get_constraintdef(c.oid)
	  FROM pg_constraint AS c LEFT JOIN relation AS r ON r.oid = c.conrelid
	  LEFT JOIN member AS m ON m.classid = 'pg_type'::regclass AND m.objid = c.contypid
	 WHERE r.oid IS NOT NULL OR m.objid IS NOT NULL
	UNION ALL
	SELECT 'index ' || pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN relation AS r ON r.oid = i.indrelid
	UNION ALL
	SELECT 'trigger ' || t.tgenabled::text || ' ' || pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN relation AS r ON r.oid = t.tgrelid
	 WHERE NOT t.tgisinternal
	UNION ALL
	SELECT 'policy ' || r.name || ' ' || p.polname || ' ' || p.polcmd::text || ' ' || p.polroles::regrole[]::text || ' '
		   || COALESCE(pg_get_expr(p.polqual, p.polrelid), '') || ' ' || COALESCE(pg_get_expr(p.polwithcheck, p.polrelid), '')
		   || ' ' || COALESCE(obj_description(p.oid, 'pg_policy'), '')
	  FROM pg_policy AS p JOIN relation AS r ON r.oid = p.polrelid
	UNION ALL
	SELECT 'event trigger ' || t.evtname || ' ' || t.evtenabled::text || ' ' || t.evttags::text FROM pg_event_trigger AS t
	UNION ALL
	SELECT 'dumped ' || x.t::regclass || ' ' || x.condition
	  FROM pg_extension AS e CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS x (t, condition) WHERE e.extname = 'leasehold');

sub facts
{
	my ($database) = @_;
	return [ split /\n(?=\w)/, $node->owner("SELECT string_agg(f, E'\\n' ORDER BY f) FROM ($FACTS) AS f (f)", $database) ];
}

# columns(database): the columns of each table that is dumped, as they were before; of the rows that are.
sub columns
{
	my ($database) = @_;
	return [ split /\n/, $node->owner(q(
		SELECT format('SELECT %L || count(*) || md5(string_agg(t::text, ''|'' ORDER BY t::text)) FROM (SELECT %s FROM %s %s) AS t',
				   c.oid::regclass || ' ', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), c.oid::regclass, x.condition)
		  FROM pg_extension AS e CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS x (t, condition) JOIN pg_class AS c ON c.oid = x.t AND c.relkind = 'r'
		  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		 WHERE e.extname = 'leasehold' GROUP BY c.oid, x.condition), $database) ];
}

sub contents { my ($database, $columns) = @_; return [ map { $node->owner($_, $database) } @$columns ] }

$node->owner('CREATE DATABASE fresh');
$node->install('fresh');
$node->owner('REVOKE SELECT ON leasehold.plugins FROM leasehold_auditor; GRANT SELECT ON leasehold.plugins TO alice', 'fresh');
my $wanted = facts('fresh');
cmp_ok(scalar @$wanted, '>', 1000, 'there is a lot to compare');

ok(@released > 0 || $current eq '0.1', 'there are earlier versions');
for my $version (@released)
{
	subtest "from $version" => sub {
		my $database = 'from_' . $version =~ tr/./_/r;
		$node->owner("CREATE DATABASE $database");
		$node->owner("CREATE EXTENSION leasehold VERSION '$version'", $database);
		$node->boss(q(SELECT leasehold.create_company('acme');
			SELECT leasehold.grant_company('acme', 'alice', 'manager');), $database);
		eventually { $node->worker_states($database) eq 'unsupported' } 'its worker waits for the upgrade';
		$provider->register($node, database => $database, ready => 0);
		$node->environment('dev', 'box', { image => 'a' }, $database);
		my ($result, $said) = $node->outcome('alice', q(SELECT leasehold.request_lease('dev')), $database);
		like($said, qr/WARNING.*version \Q$version\E/, 'a request is kept, with a warning');
		my ($lease) = $said =~ /^([0-9a-f-]{36})/m;
		$node->owner('REVOKE SELECT ON leasehold.plugins FROM leasehold_auditor; GRANT SELECT ON leasehold.plugins TO alice', $database);

		my $columns = columns($database);
		my $before = contents($database, $columns);
		$node->owner('BEGIN; ALTER EXTENSION leasehold UPDATE; ROLLBACK', $database);
		is_deeply(contents($database, $columns), $before, 'an upgrade that is rolled back changes nothing');
		is($node->worker_states($database), 'unsupported', 'nor what is served');
		$node->boss('SELECT leasehold.pause_worker()', $database);
		$before = contents($database, $columns);
		$node->owner('ALTER EXTENSION leasehold UPDATE', $database);
		is_deeply(contents($database, $columns), $before, 'every row is kept');
		my $got = facts($database);
		my %wanted = map { $_ => 1 } @$wanted;
		my %got = map { $_ => 1 } @$got;
		is_deeply([ grep { !$wanted{$_} } @$got ], [], 'nothing is there that a new installation does not have');
		is_deeply([ grep { !$got{$_} } @$wanted ], [], 'and nothing is lacking');
		$node->boss('SELECT leasehold.resume_worker()', $database);
		$node->serving($database);
		local $node->{database} = $database;
		$node->settles($lease, 'active', 'what was requested before is got');
		$node->alice("SELECT leasehold.release_lease('$lease')", $database);
		$node->settles($lease, 'released', 'and released');

		# what is restored is the new version
		my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
		$node->command_ok([ 'pg_dump', '-d', $node->connstr($database), '-f', $dump ], 'it is dumped');
		$node->owner("CREATE DATABASE ${database}_again");
		$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr("${database}_again"), '-f', $dump ],
			'and restored');
		is($node->owner("SELECT status FROM leasehold.leases WHERE id = '$lease'", "${database}_again"), 'released', 'with its rows');
	};
}

$provider->obeyed;
done_testing();
