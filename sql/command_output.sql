-- What commands write: as it comes, whole characters, bounded, and for a time.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT leasehold.request_lease('plain', lease_id => test.id('o lease')) IS NOT NULL AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('o lease'), '30 seconds')).status, 'active');

-- Starts a script in the lease; waits for its end; what it wrote to one stream, as text and as bytes.
CREATE FUNCTION pg_temp.start(name text, script text) RETURNS boolean LANGUAGE sql AS $$
    SELECT leasehold.start_command(test.id('o lease'), shell => script, command_id => test.id(name)) = test.id(name) $$;
CREATE FUNCTION pg_temp.ended(name text) RETURNS text LANGUAGE sql AS $$
    SELECT w.outcome || CASE WHEN w.output_truncated THEN ' truncated' ELSE '' END FROM leasehold.wait_for_command(test.id(name), '30 seconds') AS w $$;
CREATE FUNCTION pg_temp.text_of(name text, stream text DEFAULT 'stdout') RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(o.text, '' ORDER BY o.seq) FROM leasehold.read_output(test.id(name)) AS o WHERE o.stream = text_of.stream $$;
CREATE FUNCTION pg_temp.bytes_of(name text, stream text DEFAULT 'stdout') RETURNS text LANGUAGE sql AS $$
    SELECT encode(string_agg(o.data, '' ORDER BY o.seq), 'hex') FROM leasehold.read_output(test.id(name)) AS o WHERE o.stream = bytes_of.stream $$;

-- In the order in which it came, with its stream.
SELECT pg_temp.start('in order', 'echo one; err two; echo three');
SELECT test.is('it ends', pg_temp.ended('in order'), 'exited');
SELECT test.is('in order', string_agg(o.seq || ' ' || o.stream || ' ' || rtrim(o.text, E'\n'), ', ' ORDER BY o.seq), '1 stdout one, 2 stderr two, 3 stdout three'),
       test.is('in time', bool_and(o.at BETWEEN k.started_at AND k.finished_at), true)
  FROM leasehold.read_output(test.id('in order')) AS o, leasehold.commands AS k WHERE k.id = test.id('in order');
SELECT test.is('after the first', string_agg(o.seq::text, ' ' ORDER BY o.seq), '2 3') FROM leasehold.read_output(test.id('in order'), 1) AS o;
SELECT test.is('after the last: nothing, and at once', count(*), 0) FROM leasehold.read_output(test.id('in order'), 3, '30 seconds') AS o;
SELECT test.is('from the beginning', string_agg(o.seq::text, ' ' ORDER BY o.seq), '1 2 3') FROM leasehold.read_output(test.id('in order'), NULL) AS o;
SELECT test.is('it is counted', (k.stdout_bytes, k.stderr_bytes, k.output_truncated)::text, '(10,4,f)') FROM leasehold.commands AS k WHERE k.id = test.id('in order');
SELECT test.is('the table has it, too', string_agg(o.stream || ' ' || o.data::text, ' ' ORDER BY o.seq), 'stdout \x6f6e650a stderr \x74776f0a stdout \x74687265650a') FROM leasehold.command_output AS o WHERE o.command_id = test.id('in order');
SELECT pg_temp.start('silent', 'true');
SELECT test.is('one that writes nothing', (pg_temp.ended('silent'), (SELECT count(*) FROM leasehold.read_output(test.id('silent'), timeout => '30 seconds')))::text, '(exited,0)');

-- As it comes: while the command runs.
SELECT pg_temp.start('live', 'echo early; sleep 0.5; echo late; hang');
SELECT test.is('the first', string_agg(o.seq || ' ' || o.text, ''), E'1 early\n') FROM leasehold.read_output(test.id('live'), timeout => '30 seconds') AS o;
SELECT test.is('waiting for the next', string_agg(o.seq || ' ' || o.text, ''), E'2 late\n') FROM leasehold.read_output(test.id('live'), 1, '30 seconds') AS o;
SELECT test.is('it runs still', k.status, 'running') FROM leasehold.commands AS k WHERE k.id = test.id('live');
SELECT test.is('at the timeout: nothing', count(*), 0) FROM leasehold.read_output(test.id('live'), 2, '0.2 seconds') AS o;
SELECT test.is('cancelled', leasehold.cancel_command(test.id('live')), 'running');
SELECT test.is('its end ends the wait', (pg_temp.ended('live'), (SELECT count(*) FROM leasehold.read_output(test.id('live'), 2, '30 seconds')))::text, '(cancelled,0)');
SELECT pg_temp.start('behind a snapshot', 'sleep 0.3; echo x');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT test.is('before', count(*), 0) FROM leasehold.command_output AS o WHERE o.command_id = test.id('behind a snapshot');
SELECT test.is('waiting sees what comes', string_agg(o.text, ''), E'x\n') FROM leasehold.read_output(test.id('behind a snapshot'), timeout => '30 seconds') AS o;
SELECT test.is('the transaction sees what it saw', count(*), 0) FROM leasehold.command_output AS o WHERE o.command_id = test.id('behind a snapshot');
COMMIT;
SELECT test.refused('too long', $$SELECT leasehold.read_output(test.id('live'), timeout => '61 seconds')$$, 'argument_invalid');
SELECT test.refused('of what does not exist', $$SELECT leasehold.read_output(test.id('nothing'))$$, 'command_not_found');
SELECT test.refused('nor without waiting', $$SELECT leasehold.read_output(test.id('nothing'), 5, '0 seconds')$$, 'command_not_found');

-- About a megabyte at a time.
SELECT pg_temp.start('much', 'flood 3000000');
SELECT test.is('it ends', pg_temp.ended('much'), 'exited');
CREATE TEMP TABLE pages (nr serial, seq bigint, bytes bigint);
DO $$
DECLARE
    v_after bigint := 0;
BEGIN
    LOOP
        INSERT INTO pages (seq, bytes) SELECT max(o.seq), sum(octet_length(o.data)) FROM leasehold.read_output(test.id('much'), v_after) AS o HAVING count(*) > 0 RETURNING seq INTO v_after;
        EXIT WHEN NOT FOUND;
    END LOOP;
END
$$;
SELECT test.is('in pages', (count(*), bool_and(p.bytes BETWEEN 1048576 AND 1048576 + 32768 OR p.nr = 3), sum(p.bytes))::text, '(3,t,3000000)') FROM pages AS p;
SELECT test.is('without a gap', (min(o.seq), max(o.seq) = count(*), sum(octet_length(o.data)), bool_and(octet_length(o.data) <= 32768))::text, '(1,t,3000000,t)') FROM leasehold.command_output AS o WHERE o.command_id = test.id('much');
SELECT test.is('nothing is changed on the way', sha256((SELECT string_agg(o.data, '' ORDER BY o.seq) FROM leasehold.command_output AS o WHERE o.command_id = test.id('much'))),
    sha256(convert_to(repeat(repeat('x', 79) || E'\n', 37500), 'UTF8')));

-- Characters stay whole, wherever what came was cut.
CREATE TEMP TABLE characters (nr serial, label text, script text, shown text, hex text);
INSERT INTO characters (label, script, shown, hex) VALUES
    ('two bytes', 'bytes C3 A4', 'ä', 'c3a4'), ('three bytes', 'bytes E2 82 AC', '€', 'e282ac'), ('four bytes', 'bytes F0 9F A6 86', '🦆', 'f09fa686'), ('in the midst', 'bytes 61E2 82 AC62', 'a€b', '61e282ac62'),
    ('two in a row', 'bytes C3 A4C3 A4', 'ää', 'c3a4c3a4'), ('with something else between', 'bytes C3; err x; bytes A4', 'ä', 'c3a4'),
    -- what is no character: each byte is one U+FFFD, and the bytes are kept
    ('the beginning of one', 'bytes 61C3', U&'a\FFFD', '61c3'), ('and then another', 'bytes E282 C3A4', U&'\FFFD\FFFDä', 'e282c3a4'), ('and then none', 'bytes E2 41', U&'\FFFDA', 'e241'), ('the rest of one', 'bytes A441', U&'\FFFDA', 'a441'),
    ('a rest that is too long', 'bytes C3 A4A4', U&'ä\FFFD', 'c3a4a4'), ('an overlong one', 'bytes C0AF', U&'\FFFD\FFFD', 'c0af'), ('half a surrogate pair', 'bytes EDA080', U&'\FFFD\FFFD\FFFD', 'eda080'), ('beyond the last', 'bytes F4908080', U&'\FFFD\FFFD\FFFD\FFFD', 'f4908080'),
    ('bytes that are never in one', 'bytes FFFE', U&'\FFFD\FFFD', 'fffe'), ('NUL', 'bytes 610062 00', U&'a\FFFDb\FFFD', '61006200'),
    -- what a terminal would act on is kept and shown as it is
    ('escape sequences', 'bytes 1B5B33316D72656408070D0A', E'\x1b[31mred\x08\x07\r\n', '1b5b33316d72656408070d0a'), ('DEL and C1', 'bytes 7FC29B', U&'\007F\009B', '7fc29b'),
    ('right to left', 'bytes E280AE', U&'\202E', 'e280ae'), ('a byte order mark', 'bytes EFBBBF', U&'\FEFF', 'efbbbf');
SELECT bool_and(pg_temp.start(c.label, c.script)) AS started FROM characters AS c;
SELECT test.is(c.label, (pg_temp.ended(c.label), pg_temp.text_of(c.label), pg_temp.bytes_of(c.label))::text, ('exited', c.shown, c.hex)::text) FROM characters AS c ORDER BY c.nr;
SELECT test.is('no piece that is complete shows a part of one: ' || c.label, bool_and(o.text !~ U&'\FFFD'), true)
  FROM characters AS c, LATERAL leasehold.read_output(test.id(c.label)) AS o WHERE c.nr <= 6 GROUP BY c.nr, c.label ORDER BY c.nr;
SELECT leasehold.start_command(test.id('o lease'), ARRAY['cat'], stdin => repeat('a€🦆', 100000), command_id => test.id('many')) IS NOT NULL AS started;
SELECT test.is('it ends', pg_temp.ended('many'), 'exited');
SELECT test.is('pieces end with whole characters', (count(*) > 20, bool_and(convert_from(o.data, 'UTF8') = o.text), string_agg(o.text, '' ORDER BY o.seq) = repeat('a€🦆', 100000))::text, '(t,t,t)')
  FROM leasehold.read_output(test.id('many')) AS o;

-- A limit: so many bytes are kept, and all are counted; one notice says so.
SET ROLE regress_admin;
SELECT leasehold.set_limit('output_bytes', 1000, company => 'acme');
SET ROLE regress_user;
-- What is kept of both streams, what is counted, and what the notice says.
CREATE FUNCTION pg_temp.kept(name text) RETURNS text LANGUAGE sql AS $$
    SELECT (k.outcome, (SELECT COALESCE(sum(octet_length(o.data)) FILTER (WHERE o.stream = 'stdout'), 0) || ' ' || COALESCE(sum(octet_length(o.data)) FILTER (WHERE o.stream = 'stderr'), 0) FROM leasehold.command_output AS o WHERE o.command_id = k.id),
            k.stdout_bytes, k.stderr_bytes, k.output_truncated, rtrim(pg_temp.text_of(name, 'notice'), E'\n'))::text FROM leasehold.commands AS k WHERE k.id = test.id(name) $$;
SELECT pg_temp.start('more than is kept', 'flood 5000; err late; echo late'), pg_temp.start('as much as is kept', 'flood 1000'), pg_temp.start('in small parts', 'flood 990; echo ' || repeat('y', 8) || '; flood 1'), pg_temp.start('from both', 'flood 600; err ' || repeat('z', 599));
SELECT test.is(n, pg_temp.ended(n), 'exited' || want) FROM (VALUES ('more than is kept', ' truncated'), ('as much as is kept', ''), ('in small parts', ''), ('from both', ' truncated')) AS v (n, want);
SELECT test.is('more than is kept', pg_temp.kept('more than is kept'), '(exited,"1000 0",5005,5,t,"output truncated: the limit of 1000 bytes is reached")');
SELECT test.is('as much as is kept', pg_temp.kept('as much as is kept'), '(exited,"1000 0",1000,0,f,)');
SELECT test.is('in small parts', pg_temp.kept('in small parts'), '(exited,"1000 0",1000,0,f,)');
SELECT test.is('both streams share it', pg_temp.kept('from both'), '(exited,"600 400",600,600,t,"output truncated: the limit of 1000 bytes is reached")');
SELECT test.is('the notice comes where it was cut', string_agg(o.stream, ' ' ORDER BY o.seq), 'stdout stderr notice') FROM leasehold.command_output AS o WHERE o.command_id = test.id('from both');
SELECT leasehold.start_command(test.id('o lease'), ARRAY['cat'], stdin => repeat('€', 400), command_id => test.id('cut at a character')) IS NOT NULL AS started;
SELECT test.is('it ends', pg_temp.ended('cut at a character'), 'exited truncated');
SELECT test.is('cut at a character', pg_temp.kept('cut at a character'), '(exited,"999 0",1200,0,t,"output truncated: the limit of 1000 bytes is reached")');
SELECT test.is('whole', pg_temp.text_of('cut at a character'), repeat('€', 333));
-- a flood costs no more than its limit, and ends
SELECT pg_temp.start('a flood', 'flood 100000000; exit 3');
SELECT test.is('it ends', pg_temp.ended('a flood'), 'exited truncated');
SELECT test.is('a flood', pg_temp.kept('a flood'), '(exited,"1000 0",100000000,0,t,"output truncated: the limit of 1000 bytes is reached")');
-- output in tiny pieces, which are rows, counts for more than its bytes
SET ROLE regress_admin;
SELECT leasehold.set_limit('output_bytes', 100000, company => 'acme');
SET ROLE regress_user;
SELECT pg_temp.start('in tiny pieces', repeat('bytes 61; err b; ', 5000) || 'exit 3'), pg_temp.start('in some', repeat('bytes 61; err b; ', 400));
SELECT test.is('it ends', pg_temp.ended('in tiny pieces'), 'exited truncated');
SELECT test.is('so many are kept at most', count(*) BETWEEN 1000 AND 1000 + 100000 / 64 + 2, true) FROM leasehold.command_output AS o WHERE o.command_id = test.id('in tiny pieces');
SELECT test.is('all is counted', (k.stdout_bytes, k.stderr_bytes, k.exit_code)::text, '(5000,10000,3)') FROM leasehold.commands AS k WHERE k.id = test.id('in tiny pieces');
SELECT test.is('some are free', (pg_temp.ended('in some'), pg_temp.kept('in some'))::text, '(exited,"(exited,""400 800"",400,800,f,)")');
SET ROLE regress_admin;
SELECT leasehold.set_limit('output_bytes', 1000, company => 'acme');
SET ROLE regress_user;
-- of several limits the lowest holds
SET ROLE regress_admin;
SELECT leasehold.set_limit('output_bytes', 0, company => 'acme', environment => 'plain'), leasehold.set_limit('output_bytes', 5, company => 'beta');
SET ROLE regress_user;
SELECT pg_temp.start('nothing at all', 'echo x');
SELECT test.is('it ends', pg_temp.ended('nothing at all'), 'exited truncated');
SELECT test.is('nothing is kept', pg_temp.kept('nothing at all'), '(exited,"0 0",2,0,t,"output truncated: the limit of 0 bytes is reached")');
SET ROLE regress_admin;
SELECT leasehold.set_limit('output_bytes', company => 'acme', environment => 'plain'), leasehold.set_limit('output_bytes', company => 'beta'), leasehold.set_limit('output_bytes', 100000000, company => 'acme');
RESET ROLE;
BEGIN;
SELECT leasehold.start_command(test.id('o lease'), '{true}', command_id => test.id('bounded'), company => 'acme') IS NOT NULL AS started;
SELECT test.is('the setting bounds them all', c.output_limit, 500) FROM leasehold_internal.claim_commands(0, ARRAY[test.id('acme')], ARRAY[test.id('bounded')], ARRAY['command'], 30000, 500) AS c;
ROLLBACK;
SELECT leasehold.set_limit('output_bytes', company => 'acme');

-- It is kept for leasehold.output_retention days, which are 14; the command stays.
UPDATE leasehold.commands SET finished_at = now() - CASE WHEN id = test.id('much') THEN interval '13 days 23 hours' ELSE '14 days 1 hour' END WHERE id IN (test.id('much'), test.id('many'), test.id('in order'));
SELECT test.is('housekeeping', leasehold_internal.housekeep('output', ARRAY(SELECT s::smallint FROM generate_series(0, 63) AS s), 90, 400, 0), false);
SELECT test.is('what is old enough is removed: ' || n, (k.output_removed_at IS NOT NULL, EXISTS (SELECT FROM leasehold.command_output AS o WHERE o.command_id = k.id), k.stdout_bytes > 0)::text, want)
  FROM (VALUES ('much', '(f,t,t)'), ('many', '(t,f,t)'), ('in order', '(t,f,t)')) AS v (n, want) JOIN leasehold.commands AS k ON k.id = test.id(n) ORDER BY n;
SET ROLE regress_user;
SELECT test.is('reading it is reading nothing', (pg_temp.ended('many'), (SELECT count(*) FROM leasehold.read_output(test.id('many'), timeout => '30 seconds')))::text, '(exited,0)');
RESET ROLE;
-- a hundred commands at a time
INSERT INTO leasehold.commands (company_id, id, lease_id, generation, provider, shell, status, outcome, exit_code, started_at, finished_at)
SELECT test.id('acme'), test.id('old ' || i), test.id('o lease'), 1, 'fake', 'true', 'finished', 'exited', 0, now() - interval '16 days', now() - interval '15 days' FROM generate_series(1, 150) AS i;
SELECT test.is('more is left', leasehold_internal.housekeep('output', ARRAY[leasehold_internal.shard_of(test.id('acme'))], 90, 400, 0), true);
SELECT test.is('then no more', leasehold_internal.housekeep('output', ARRAY[leasehold_internal.shard_of(test.id('acme'))], 90, 400, 0), false);
SELECT test.is('all of them', count(*), 150) FROM leasehold.commands AS k WHERE k.id IN (SELECT test.id('old ' || i) FROM generate_series(1, 150) AS i) AND k.output_removed_at IS NOT NULL;
SELECT test.is('other shards'' are left to others', leasehold_internal.housekeep('output', '{}', 90, 400, 0), false);
-- commands go with their lease
SELECT test.is('given back', leasehold.release_lease(test.id('o lease'), company => 'acme'), 'releasing');
SELECT test.is('released', (leasehold.wait_for_lease(test.id('o lease'), '30 seconds', 'acme')).status, 'released');
BEGIN;
UPDATE leasehold.leases SET ended_at = now() - interval '91 days' WHERE id = test.id('o lease');
SELECT leasehold_internal.housekeep('leases', ARRAY[leasehold_internal.shard_of(test.id('acme'))], 90, 400, 0) IS NOT NULL AS done;
SELECT test.is('commands and output go with their lease', (SELECT count(*) FROM leasehold.commands AS k WHERE k.lease_id = test.id('o lease')) + (SELECT count(*) FROM leasehold.command_output AS o WHERE o.command_id = test.id('much')), 0);
ROLLBACK;
