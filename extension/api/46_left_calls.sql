-- 46_left_calls.sql: what becomes of commands and leases when the CALL that waited
-- for them has ended in its midst.  See extension/attachment.c and 34_procedures.sql.

-- Ends what sessions have left: a lease, a command, or both for each (null where
-- there is none).  A lease of another generation has another holder by now, and
-- is not ended.  Returns for each whether it is done; it is not, if a user has
-- something of it locked.
CREATE FUNCTION leasehold_internal.end_left_calls(
        company_ids uuid[], lease_ids uuid[], generations integer[], command_ids uuid[])
    RETURNS boolean[] LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_done boolean[];
BEGIN
    SELECT pg_catalog.array_agg((t.id IS NULL OR l.id IS NOT NULL) AND (u.id IS NULL OR c.id IS NOT NULL) ORDER BY w.nr)
      INTO v_done
      FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids), pg_catalog.unnest(generations),
                     pg_catalog.unnest(command_ids)) WITH ORDINALITY AS w (company_id, lease_id, generation, command_id, nr)
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.lease_id AND x.generation = w.generation
                         OFFSET 0) AS t ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.leases AS x
                          WHERE x.company_id = w.company_id AND x.id = w.lease_id AND x.generation = w.generation
                            FOR NO KEY UPDATE SKIP LOCKED) AS l ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.command_id OFFSET 0) AS u ON true
      LEFT JOIN LATERAL (SELECT x.id FROM leasehold.commands AS x
                          WHERE x.company_id = w.company_id AND x.id = w.command_id FOR NO KEY UPDATE SKIP LOCKED) AS c ON true;

    PERFORM leasehold_internal.cancel_commands(pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.command_id),
                'the session that waited for it ended')
       FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(command_ids), pg_catalog.unnest(v_done))
            AS w (company_id, command_id, done)
      WHERE w.done AND w.command_id IS NOT NULL;
    -- as with a run that is cancelled
    PERFORM leasehold_internal.end_leases(pg_catalog.array_agg(w.company_id), pg_catalog.array_agg(w.lease_id),
                leasehold_internal.lease_end_of_run('cancelled'), NULL, 'session_ended')
       FROM ROWS FROM (pg_catalog.unnest(company_ids), pg_catalog.unnest(lease_ids), pg_catalog.unnest(generations),
                       pg_catalog.unnest(v_done)) AS w (company_id, lease_id, generation, done)
       JOIN leasehold.leases AS l ON l.company_id = w.company_id AND l.id = w.lease_id AND l.generation = w.generation
      WHERE w.done
     HAVING pg_catalog.count(*) > 0;
    RETURN v_done;
END
$$;
COMMENT ON FUNCTION leasehold_internal.end_left_calls(uuid[], uuid[], integer[], uuid[]) IS
    'Ends what sessions have left whose CALL did not see its end';

-- Those that began are lost with the worker that had them; of the others a worker
-- that takes over asks whether somebody waits.
CREATE FUNCTION leasehold_internal.attached_commands(shards smallint[], OUT company_id uuid, OUT command_id uuid)
    RETURNS SETOF record LANGUAGE sql VOLATILE AS $$
    SELECT q.company_id, q.subject_id FROM leasehold_internal.calls AS q
     WHERE q.slot = 'command' AND q.payload ? 'attached' AND q.shard = ANY (shards)
$$;
COMMENT ON FUNCTION leasehold_internal.attached_commands(smallint[]) IS
    'Commands that were started for a session that waits for them';
