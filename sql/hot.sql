-- Renewals and heartbeats change a row in its page: no index is touched.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_user;
SELECT leasehold.request_lease('plain', idle_timeout => '1 hour', lease_id => test.id('hot')) = test.id('hot') AS requested;
SELECT test.is('active', (leasehold.wait_for_lease(test.id('hot'), '30 seconds')).status, 'active');
SELECT leasehold.start_run(run_id => test.id('hot run')) IS NOT NULL AS started;
RESET ROLE;
-- pages of their own, so that other rows do not fill them
VACUUM FULL leasehold.leases;
VACUUM FULL leasehold_internal.runs;
SELECT pg_stat_force_next_flush();
SELECT pg_stat_reset_single_table_counters('leasehold.leases'::regclass), pg_stat_reset_single_table_counters('leasehold_internal.runs'::regclass);
SET ROLE regress_user;
-- one by one, so that a full page is cleared of the rows before
DO $$
BEGIN
    FOR i IN 1 .. 30 LOOP
        PERFORM leasehold.renew_lease(test.id('hot'), make_interval(mins => i));
        COMMIT;
        PERFORM leasehold.heartbeat(test.id('hot run'));
        COMMIT;
    END LOOP;
END
$$;
RESET ROLE;
SELECT pg_stat_force_next_flush();
SELECT test.is('renewals of ' || s.relname || ' are HOT', (s.n_tup_upd, s.n_tup_hot_upd)::text, '(30,30)')
  FROM pg_stat_user_tables AS s WHERE s.relid IN ('leasehold.leases'::regclass, 'leasehold_internal.runs'::regclass) ORDER BY s.relname;
-- what makes it so: none of the columns is in an index or an index's predicate
SELECT test.is('no index on them', string_agg(i.indexrelid::regclass::text, ', '), NULL)
  FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid
 WHERE i.indrelid IN ('leasehold.leases'::regclass, 'leasehold_internal.runs'::regclass)
   AND a.attname IN ('expires_at', 'last_used_at', 'heartbeat_at')
   AND (a.attnum = ANY (i.indkey) OR pg_get_expr(i.indpred, i.indrelid) ~ a.attname::text OR pg_get_expr(i.indexprs, i.indrelid) ~ a.attname::text);
SET ROLE regress_user;
SELECT leasehold.finish_run(test.id('hot run')) AS finished;
RESET ROLE;
