# What `make install` installs, and what CREATE EXTENSION accepts: a database of
# the right encoding, and roles that nobody has prepared to be let in.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use Leasehold::Node;

my $node = Leasehold::Node->new('main')->setup(extension => 0);

sub installed
{
	my ($option) = @_;
	my ($stdout, $stderr) = run_command([ 'pg_config', $option ]);
	return $stdout;
}

subtest 'files' => sub {
	my ($library, $share) = (installed('--pkglibdir') . '/leasehold.so', installed('--sharedir') . '/extension');
	ok(-f $library, 'the library');
	ok(-f "$share/leasehold.control", 'the control file');
	my ($version) = slurp_file("$share/leasehold.control") =~ /^default_version = '([^']+)'/m;
	ok(-f "$share/leasehold--$version.sql", "the script of version $version");
	is_deeply(
		[ sort map { s{.*/}{}r } glob "$share/leasehold*" ],
		[ sort 'leasehold.control', map { s{.*/}{}r } glob "$share/leasehold--*.sql" ],
		'and nothing else but the scripts of other versions');
	is(
		$node->owner(q(SELECT version, superuser, trusted, relocatable, requires
			FROM pg_available_extension_versions
			WHERE name = 'leasehold' AND version = (SELECT default_version FROM pg_available_extensions WHERE name = 'leasehold'))),
		"$version|t|f|f|{plpgsql}",
		'the server offers it');
	is($node->owner(q(SELECT string_agg(source, ', ') FROM pg_extension_update_paths('leasehold')
			WHERE target = (SELECT default_version FROM pg_available_extensions WHERE name = 'leasehold') AND path IS NULL)),
		'', 'and a way to it from every other version');
	unlike(slurp_file("$share/leasehold--$version.sql"), qr/[^\x00-\x7f]/, 'the script can be read in any encoding');
	unlike(slurp_file("$share/leasehold--$version.sql"), qr/CREATE OR REPLACE|IF NOT EXISTS/i,
		'the script takes over nothing that is there already');
	my ($stdout, $stderr) = run_command([ 'psql', '-X', '-f', "$share/leasehold--$version.sql", '-d', $node->connstr('postgres') ]);
	like($stdout, qr/Use "CREATE EXTENSION leasehold" to load this file/, 'the script does not run by itself');
	is($node->owner(q(SELECT count(*) FROM pg_namespace WHERE nspname ~ '^leasehold')), 0, 'nothing was made');
};

# untouched(name): that a refused attempt has left nothing.
sub untouched
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		$node->owner(q(
			SELECT (SELECT count(*) FROM pg_namespace WHERE nspname ~ '^leasehold') + (SELECT count(*) FROM pg_extension WHERE extname = 'leasehold')
				 + (SELECT count(*) FROM pg_roles WHERE rolname ~ '^leasehold_'))), 0, $name);
}

subtest 'who and where' => sub {
	$node->owner('CREATE ROLE mallory LOGIN CREATEDB CREATEROLE');
	$node->owner('GRANT ALL ON DATABASE postgres TO mallory');
	$node->refuses('mallory', 'CREATE EXTENSION leasehold', '42501', qr/permission denied to create extension/, 'a superuser makes it');
	for my $encoding ('LATIN1', 'SQL_ASCII', 'EUC_JP')
	{
		my $database = lc "in_$encoding";
		$node->owner("CREATE DATABASE $database ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
		$node->refuses('postgres', 'CREATE EXTENSION leasehold', '0A000', qr/needs a database with the encoding UTF8/,
			"not in a database of encoding $encoding", $database);
		$node->owner("DROP DATABASE $database");
	}
	untouched('nothing was made');
	for my $schema ('leasehold', 'leasehold_internal')
	{
		$node->owner("SET ROLE mallory; CREATE SCHEMA $schema");
		$node->refuses('postgres', 'CREATE EXTENSION leasehold', '42P06', qr/already exists/,
			"not where somebody has a schema $schema");
		$node->owner("DROP SCHEMA $schema");
	}
	untouched('still nothing');
	$node->refuses('postgres', q(CREATE EXTENSION leasehold VERSION '99'), '22023', qr/no installation script/,
		'nor in a version that there is not');
};

# What the installing role gives away by default must not be given away here.
subtest 'default privileges' => sub {
	$node->owner('CREATE DATABASE generous');
	$node->owner('CREATE ROLE webanon LOGIN');
	$node->owner("ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO webanon", 'generous')
	  for 'TABLES', 'SEQUENCES', 'FUNCTIONS', 'SCHEMAS';
	$node->owner('CREATE EXTENSION leasehold', 'generous');
	$node->owner(q(SELECT leasehold_internal.ensure_installation()), 'generous');
	my %count = (
		schemas => q(SELECT count(*) FROM pg_namespace WHERE nspname ~ '^leasehold' AND has_schema_privilege('webanon', oid, 'USAGE,CREATE')),
		relations => q(SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace WHERE nspname ~ '^leasehold'
			AND relkind IN ('r', 'p', 'v') AND has_table_privilege('webanon', c.oid, 'SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER')),
		sequences => q(SELECT count(*) FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid JOIN pg_namespace AS n ON n.oid = relnamespace
			WHERE nspname ~ '^leasehold' AND has_sequence_privilege('webanon', s.seqrelid, 'USAGE,SELECT,UPDATE')),
		functions => q(SELECT count(*) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace WHERE nspname ~ '^leasehold'
			AND has_function_privilege('webanon', p.oid, 'EXECUTE')));
	is($node->owner($count{$_}, 'generous'), 0, "no $_") for sort keys %count;
	$node->owner('DROP DATABASE generous');
	$node->owner('DROP ROLE webanon');
	$node->owner('DROP ROLE leasehold_owner, leasehold_worker, leasehold_admin, leasehold_app, leasehold_auditor, leasehold_resolver');
};

subtest 'roles that are there already' => sub {
	for my $role (qw(leasehold_owner leasehold_worker leasehold_admin leasehold_app leasehold_auditor leasehold_resolver))
	{
		my $bypass = $role eq 'leasehold_worker' ? 'BYPASSRLS' : 'NOBYPASSRLS';
		my $wrong = $role eq 'leasehold_worker' ? 'NOBYPASSRLS' : 'BYPASSRLS';
		for my $options ("LOGIN $bypass", "SUPERUSER $bypass", "CREATEROLE $bypass", "CREATEDB $bypass", "REPLICATION $bypass", $wrong)
		{
			$node->owner("CREATE ROLE $role $options");
			$node->refuses('postgres', 'CREATE EXTENSION leasehold', 'PT422', qr/role "$role" exists and is not as leasehold needs it/,
				"$role $options is refused");
			$node->owner("DROP ROLE $role");
		}
		$node->owner("CREATE ROLE $role $bypass; GRANT pg_read_all_data TO $role");
		$node->refuses('postgres', 'CREATE EXTENSION leasehold', 'PT422', qr/role "$role" exists and is a member of another role/,
			"$role with privileges of its own is refused");
		$node->owner("DROP ROLE $role");
		untouched("$role: nothing was made");
	}

	# somebody has prepared a role, and let himself in
	for my $role (qw(leasehold_admin leasehold_app leasehold_auditor leasehold_resolver))
	{
		$node->owner("SET ROLE mallory; CREATE ROLE $role; GRANT $role TO mallory");
		$node->refuses('postgres', 'CREATE EXTENSION leasehold', 'PT422', qr/has members that leasehold cannot trust/,
			"$role with a member that no superuser let in is refused");
		$node->owner("DROP ROLE $role");
	}
	for my $role ('leasehold_owner', 'leasehold_worker')
	{
		$node->owner("CREATE ROLE $role " . ($role =~ /worker/ ? 'BYPASSRLS' : '') . "; GRANT $role TO mallory");
		$node->refuses('postgres', 'CREATE EXTENSION leasehold', 'PT422', qr/has members that leasehold cannot trust/,
			"$role with any member is refused");
		$node->owner("DROP ROLE $role");
	}
	untouched('nothing was made');

	# those that are as they should be are taken, with members that a superuser let in
	$node->owner('CREATE ROLE leasehold_owner; CREATE ROLE leasehold_worker BYPASSRLS; CREATE ROLE leasehold_admin;
		CREATE ROLE leasehold_app; CREATE ROLE leasehold_auditor;
		CREATE ROLE boss LOGIN IN ROLE leasehold_admin; CREATE ROLE alice LOGIN IN ROLE leasehold_app');
	$node->owner('CREATE EXTENSION leasehold');
	pass('suitable ones are taken');
	is($node->owner(q(SELECT rolcanlogin OR rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = 'leasehold_resolver')),
		'f', 'the missing one is made');
	$node->boss(q(SELECT leasehold.create_company('acme'); SELECT leasehold.grant_company('acme', 'alice', 'manager')));
	$node->serving;
	$node->environment('dev', 'fake', {});
	my $lease = $node->request(q('dev'));
	$node->settles($lease, 'active', 'and it works');
	$node->alice("SELECT leasehold.release_lease('$lease')");
	$node->settles($lease, 'released', 'to the end');
};

subtest 'what is installed' => sub {
	is($node->owner(q(
			SELECT count(*) FROM pg_depend AS d JOIN pg_proc AS p ON p.oid = d.objid JOIN pg_extension AS e ON e.oid = d.refobjid
			 WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND e.extname = 'leasehold'
			   AND pg_get_userbyid(p.proowner) NOT IN ('leasehold_owner', 'leasehold_worker')
			   AND p.proname NOT IN ('guard_drop', 'announce_extension'))),
		0, 'functions belong to leasehold_owner');
	is($node->owner(q(SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
			WHERE n.nspname ~ '^leasehold' AND pg_get_userbyid(c.relowner) <> 'leasehold_owner')),
		0, 'and so do tables, partitions included');
	is($node->owner(q(SELECT count(*) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
			WHERE n.nspname ~ '^leasehold' AND has_function_privilege('public', p.oid, 'EXECUTE'))),
		0, 'nobody has EXECUTE by being somebody');
	is($node->owner(q(SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
			WHERE n.nspname ~ '^leasehold' AND c.relkind IN ('r', 'p', 'v')
			  AND has_table_privilege('public', c.oid, 'SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER'))),
		0, 'nor any privilege on a table');
	is($node->owner(q(SELECT count(*) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
			WHERE n.nspname ~ '^leasehold' AND p.prosecdef AND NOT EXISTS (
				SELECT FROM unnest(p.proconfig) AS c WHERE c LIKE 'search\_path=pg\_catalog, pg\_temp'))),
		0, 'functions with others\' rights have a fixed search_path');
	is($node->owner(q(
			SELECT string_agg(pg_describe_object(d.classid, d.objid, 0), ', ')
			  FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'leasehold'
			 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
			   AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass)
			   AND obj_description(d.objid, CASE d.classid WHEN 'pg_proc'::regclass THEN 'pg_proc'
					WHEN 'pg_class'::regclass THEN 'pg_class' ELSE 'pg_namespace' END) IS NULL)),
		'', 'every function, table and schema has a comment');
};

subtest 'another version' => sub {
	# the library is newer or older than the SQL objects
	$node->owner(q(UPDATE pg_extension SET extversion = '99.0' WHERE extname = 'leasehold'));
	my ($worker) = $node->workers;
	$node->owner("SELECT pg_terminate_backend($worker)");
	eventually { $node->worker_states eq 'unsupported' } 'is not served';
	like($node->doctor, qr/^error worker_unsupported: the SQL objects are of version 99\.0/m, 'doctor() says why');
	my ($result, $said) = $node->outcome('alice', q(SELECT leasehold.request_lease('dev')));
	is($result, 'ok', 'requests are kept');
	like($said, qr/WARNING.*version 99\.0/, 'with a warning');
	my ($lease) = $said =~ /^([0-9a-f-]{36})/m;
	$node->owner(q(UPDATE pg_extension SET extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'leasehold')
		WHERE extname = 'leasehold'));
	$node->settles($lease, 'active', 'once they fit, it is carried out');
	($result, $said) = $node->outcome('postgres', 'ALTER EXTENSION leasehold UPDATE');
	like($said, qr/is already installed/, 'there is nothing to update to');

	# what a worker has out when they cease to fit, it takes over from itself when they do again
	my $became = sub {
		my ($version) = @_;
		$node->owner("BEGIN; UPDATE pg_extension SET extversion = '$version' WHERE extname = 'leasehold';
			UPDATE leasehold_internal.installation SET paused = paused; COMMIT");
	};
	my ($version) = $node->owner(q(SELECT extversion FROM pg_extension WHERE extname = 'leasehold'));
	my $command = $node->alice("SELECT leasehold.start_command('$lease', shell => 'echo before; sleep 1; echo after')");
	my $wrote = sub { $node->owner("SELECT string_agg(convert_from(data, 'UTF8'), '' ORDER BY seq)
		FROM leasehold.command_output WHERE command_id = '$command'") };
	eventually { $wrote->() eq "before\n" } 'a command runs';
	$became->('99.0');
	eventually { $node->worker_states eq 'unsupported' } 'its worker is told';
	# longer than it takes
	is($node->owner(q(SELECT pg_sleep(1.5) IS NOT NULL)), 't', 'the command ends');
	is($node->owner("SELECT status FROM leasehold.commands WHERE id = '$command'"), 'running', 'of which nothing is stored');
	is($wrote->(), "before\n", 'nor what it wrote');
	$became->($version);
	$node->happens("SELECT status = 'finished' FROM leasehold.commands WHERE id = '$command'", 'until they fit again');
	is($node->owner("SELECT outcome, failure_code FROM leasehold.commands WHERE id = '$command'"), 'lost|worker_ended',
		'nobody has seen its end');
	is($wrote->(), "before\n", 'what was stored is kept');
	$command = $node->alice("SELECT leasehold.start_command('$lease', shell => 'echo again')");
	$node->happens("SELECT outcome = 'exited' FROM leasehold.commands WHERE id = '$command'", 'and it serves others');
	is($wrote->(), "again\n", 'as before');
};

done_testing();
