-- 10_installation.sql: who we are, so that a copy of this database knows that it
-- is one.
--
-- The stamp is written when the first company or plugin is made, not at CREATE
-- EXTENSION: a restore creates the extension and then brings its own stamp,
-- whose facts do not fit the place it was restored to, and holds the worker.

CREATE TABLE leasehold_internal.installation (
    id                uuid PRIMARY KEY,
    epoch             bigint NOT NULL DEFAULT 1,
    database_oid      oid NOT NULL,
    system_identifier text NOT NULL,
    host              text NOT NULL,
    data_directory    text NOT NULL,
    directory_inode   bigint NOT NULL,
    timeline          integer NOT NULL,
    paused            boolean NOT NULL DEFAULT false,
    paused_reason     text,
    draining          boolean NOT NULL DEFAULT false,
    sweep_dry         boolean NOT NULL DEFAULT false,
    created_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    -- the timeline on which the dispatch table was written; NULL: the stamp's
    dispatch_timeline integer,
    CHECK (epoch > 0)
);
COMMENT ON TABLE leasehold_internal.installation IS
    'The installation''s identity and where it may run: one row once anything exists';

CREATE TABLE leasehold_internal.allowed_hosts (
    host           text NOT NULL,
    data_directory text NOT NULL,
    added_at       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (host, data_directory)
);
COMMENT ON TABLE leasehold_internal.allowed_hosts IS
    'Where the installation goes on by itself after a failover: see leasehold.allow_host()';

-- Counts the workers that ever served this database; what they write is fenced by it.
CREATE SEQUENCE leasehold_internal.worker_epoch;
COMMENT ON SEQUENCE leasehold_internal.worker_epoch IS 'Each worker process takes the next number as its epoch';

CREATE FUNCTION leasehold_internal.here(
        OUT database_oid oid, OUT system_identifier text, OUT host text, OUT data_directory text,
        OUT directory_inode bigint, OUT timeline integer)
    RETURNS record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_here';
COMMENT ON FUNCTION leasehold_internal.here() IS 'The facts of this server that the stamp is compared with';

CREATE FUNCTION leasehold_internal.current_epoch() RETURNS bigint
    LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'leasehold_current_epoch';
COMMENT ON FUNCTION leasehold_internal.current_epoch() IS 'The installation''s epoch, 0 before the stamp';

CREATE FUNCTION leasehold_internal.is_draining() RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'leasehold_is_draining';
COMMENT ON FUNCTION leasehold_internal.is_draining() IS 'Whether drain_installation() was called';

CREATE TRIGGER installation_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.installation
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
CREATE TRIGGER installation_changed AFTER INSERT OR UPDATE OR DELETE ON leasehold_internal.allowed_hosts
    FOR EACH STATEMENT EXECUTE FUNCTION leasehold_internal.relation_changed();
-- in a restore that switches triggers off, too
ALTER TABLE leasehold_internal.installation ENABLE ALWAYS TRIGGER installation_changed;
ALTER TABLE leasehold_internal.allowed_hosts ENABLE ALWAYS TRIGGER installation_changed;

-- Writes the stamp if there is none; with it the audit trail begins, whose first
-- partitions must be there before its first rows.
CREATE FUNCTION leasehold_internal.ensure_installation() RETURNS uuid
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_id uuid;
BEGIN
    SELECT i.id INTO v_id FROM leasehold_internal.installation AS i LIMIT 1;
    IF NOT FOUND THEN
        LOCK TABLE leasehold_internal.installation IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO leasehold_internal.installation AS i
               (id, database_oid, system_identifier, host, data_directory, directory_inode, timeline)
        SELECT leasehold.new_id(), h.database_oid, h.system_identifier, h.host, h.data_directory,
               h.directory_inode, h.timeline
          FROM leasehold_internal.here() AS h
         WHERE NOT EXISTS (SELECT FROM leasehold_internal.installation)
        RETURNING i.id INTO v_id;
        IF v_id IS NULL THEN
            SELECT i.id INTO v_id FROM leasehold_internal.installation AS i LIMIT 1;
        ELSE
            PERFORM leasehold_internal.make_audit_partitions();
        END IF;
    END IF;
    RETURN v_id;
END
$$;
COMMENT ON FUNCTION leasehold_internal.ensure_installation() IS 'The installation''s id; makes the stamp first if need be';

-- Why the worker may not act here, or NULL.
CREATE FUNCTION leasehold_internal.hold_reason() RETURNS text
    LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN (SELECT pg_catalog.count(*) FROM leasehold_internal.installation) > 1
            THEN 'several stamps: data of more than one installation was restored into this database'
        WHEN i.database_oid <> h.database_oid OR i.system_identifier <> h.system_identifier
            THEN 'this database is a copy or was restored from a dump'
        WHEN i.host = h.host AND i.data_directory = h.data_directory
             AND i.directory_inode = h.directory_inode AND i.timeline = h.timeline
            THEN NULL
        WHEN EXISTS (SELECT FROM leasehold_internal.allowed_hosts AS a
                     WHERE a.host = h.host AND a.data_directory = h.data_directory)
            THEN NULL
        WHEN i.host <> h.host OR i.data_directory <> h.data_directory
            THEN pg_catalog.format('this server is not where the installation was made (%s, %s), but at %s, %s',
                                   i.host, i.data_directory, h.host, h.data_directory)
        WHEN i.timeline <> h.timeline
            THEN 'this server was recovered to a point in time or promoted'
        ELSE 'the data directory was copied'
        END
    FROM leasehold_internal.installation AS i, leasehold_internal.here() AS h
    LIMIT 1
$$;
COMMENT ON FUNCTION leasehold_internal.hold_reason() IS
    'Why this is not the place where the installation runs, or NULL if it is';
