\echo Use "CREATE EXTENSION leasehold" to load this file. \quit

-- 00_guard.sql: what must hold before anything is created.

DO $$
BEGIN
    IF pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.<>) 'UTF8' THEN
        RAISE EXCEPTION 'leasehold needs a database with the encoding UTF8'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with ENCODING ''UTF8''.';
    END IF;
END
$$;
