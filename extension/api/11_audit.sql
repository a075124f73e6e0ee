-- 11_audit.sql: the audit trail.
--
-- The parent has no key and no index, and the only partition that the install
-- script makes is the DEFAULT one: a partition that were a member of the
-- extension would be left out of dumps.  The worker makes the others ahead of
-- time; each has its own key.  Rows in the DEFAULT partition are an alarm.

CREATE TABLE leasehold.audit_events (
    company_id      uuid NOT NULL,
    occurred_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    id              uuid NOT NULL DEFAULT leasehold.new_id(),
    action          text NOT NULL,
    entity_type     text NOT NULL,
    entity_id       text NOT NULL,
    agent_id        uuid,
    issue_id        uuid,
    run_id          uuid,
    session_role    name NOT NULL DEFAULT SESSION_USER,
    acting_role     name NOT NULL DEFAULT leasehold.acting_role(),
    asserted_actor  text DEFAULT leasehold_internal.asserted_actor(),
    details         jsonb NOT NULL DEFAULT '{}',
    epoch           bigint NOT NULL DEFAULT leasehold_internal.current_epoch(),
    transaction_id  xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id()
) PARTITION BY RANGE (occurred_at);
COMMENT ON TABLE leasehold.audit_events IS 'Everything that was changed, by whom and for whom; rows are never changed';
COMMENT ON COLUMN leasehold.audit_events.company_id IS 'The company, or the nil id for events of the installation';
COMMENT ON COLUMN leasehold.audit_events.session_role IS 'The role that logged in, or the worker''s';
COMMENT ON COLUMN leasehold.audit_events.acting_role IS 'The role for which the call was made';
COMMENT ON COLUMN leasehold.audit_events.asserted_actor IS 'Whom the application said it acted for';
COMMENT ON COLUMN leasehold.audit_events.details IS 'What else is known, without secrets or configuration values';
COMMENT ON COLUMN leasehold.audit_events.epoch IS 'The installation''s epoch: transaction ids are comparable within one';

CREATE TABLE leasehold.audit_events_default PARTITION OF leasehold.audit_events DEFAULT;
COMMENT ON TABLE leasehold.audit_events_default IS 'Catches events for which no partition was made in time';
ALTER TABLE leasehold.audit_events_default ADD PRIMARY KEY (company_id, occurred_at, id);

SELECT leasehold_internal.protect('leasehold.audit_events', 'viewer');
ALTER TABLE leasehold.audit_events_default ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION leasehold_internal.refuse_rewrite() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM leasehold_internal.refuse('append_only',
        format('rows of %I.%I cannot be changed or removed', TG_TABLE_SCHEMA, TG_TABLE_NAME),
        'Retention drops whole partitions.');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION leasehold_internal.refuse_rewrite() IS 'Makes a table append-only, for its owner and superusers too';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON leasehold.audit_events
    FOR EACH ROW EXECUTE FUNCTION leasehold_internal.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.audit_events_default
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite();

CREATE FUNCTION leasehold_internal.record(
        company_id uuid, action text, entity_type text, entity_id text,
        details jsonb DEFAULT '{}', agent_id uuid DEFAULT NULL, issue_id uuid DEFAULT NULL, run_id uuid DEFAULT NULL)
    RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_record';
COMMENT ON FUNCTION leasehold_internal.record(uuid, text, text, text, jsonb, uuid, uuid, uuid) IS
    'Writes one audit event, for changes that are not made by one statement with their events';

-- Makes the partitions that will be needed: one a week, the current one and as
-- many ahead as asked for.  A week that already has rows in the DEFAULT
-- partition stays there.  What it needs a lock for is rare: once a week.
CREATE FUNCTION leasehold_internal.wants_audit_partition(name text, from_time timestamptz, to_time timestamptz)
    RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.to_regclass('leasehold.' || name) IS NULL
       AND NOT EXISTS (SELECT FROM leasehold.audit_events_default AS d
                        WHERE d.occurred_at >= from_time AND d.occurred_at < to_time)
$$;
COMMENT ON FUNCTION leasehold_internal.wants_audit_partition(text, timestamptz, timestamptz) IS
    'Whether a partition of the audit trail can be made: it is not there, nor are rows of its time';

CREATE FUNCTION leasehold_internal.make_audit_partitions(weeks_ahead integer DEFAULT 4) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET default_tablespace = ''
    -- the bounds go through text: whoever is first must not have a say in how that is read
    SET timezone = 'UTC' SET datestyle = 'ISO, MDY' AS $$
DECLARE
    v_from timestamptz;
    v_to   timestamptz;
    v_name text;
    v_made integer := 0;
BEGIN
    FOR i IN 0 .. weeks_ahead LOOP
        v_from := date_trunc('week', now(), 'UTC') + make_interval(weeks => i);
        v_to := v_from + interval '7 days';
        v_name := 'audit_events_' || to_char(v_from AT TIME ZONE 'UTC', 'YYYYMMDD');
        CONTINUE WHEN NOT leasehold_internal.wants_audit_partition(v_name, v_from, v_to);
        -- nobody may make it, or add rows of its week, between the question and the deed
        LOCK TABLE leasehold.audit_events IN ACCESS EXCLUSIVE MODE;
        CONTINUE WHEN NOT leasehold_internal.wants_audit_partition(v_name, v_from, v_to);
        EXECUTE format('CREATE TABLE leasehold.%I PARTITION OF leasehold.audit_events
                        (PRIMARY KEY (company_id, occurred_at, id)) FOR VALUES FROM (%L) TO (%L)',
                       v_name, v_from, v_to);
        EXECUTE format('ALTER TABLE leasehold.%I ENABLE ROW LEVEL SECURITY', v_name);
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON leasehold.%I
                        FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.refuse_rewrite()', v_name);
        EXECUTE format('COMMENT ON TABLE leasehold.%I IS %L', v_name, 'Audit events of one week');
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END
$$;
COMMENT ON FUNCTION leasehold_internal.make_audit_partitions(integer) IS
    'Makes the partitions of the audit trail ahead of time';

-- Drops partitions that ended before the retention time.
CREATE FUNCTION leasehold_internal.drop_audit_partitions(keep interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_partition record;
    v_dropped   integer := 0;
BEGIN
    FOR v_partition IN
        SELECT c.oid::regclass AS name
          FROM pg_inherits AS h
          JOIN pg_class AS c ON c.oid = h.inhrelid
         WHERE h.inhparent = 'leasehold.audit_events'::regclass
           AND c.relname ~ '^audit_events_[0-9]{8}$'
           AND to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'
               < now() - keep - interval '7 days'
    LOOP
        EXECUTE format('DROP TABLE %s', v_partition.name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;
COMMENT ON FUNCTION leasehold_internal.drop_audit_partitions(interval) IS
    'Drops the partitions of the audit trail whose events are all older than this';
