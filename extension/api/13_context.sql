-- 13_context.sql: small mirrors of the application's own objects.  They give a
-- lease its agent, issue and workspace, and carry environment variables.
--
-- The tables are internal; what users read are views that show env and
-- metadata only to members of level user.

CREATE TABLE leasehold_internal.agents (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    adapter_type text,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.agents IS 'Agents: see the view leasehold.agents';

CREATE TABLE leasehold_internal.projects (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.projects IS 'Projects: see the view leasehold.projects';

CREATE TABLE leasehold_internal.routines (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    name         text NOT NULL,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id)
);
COMMENT ON TABLE leasehold_internal.routines IS 'Routines: see the view leasehold.routines';

CREATE TABLE leasehold_internal.execution_workspaces (
    company_id   uuid NOT NULL REFERENCES leasehold.companies,
    id           uuid NOT NULL,
    project_id   uuid,
    name         text NOT NULL,
    mode         text,
    status       leasehold.object_status NOT NULL DEFAULT 'active',
    env          jsonb NOT NULL DEFAULT '{}',
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects
);
COMMENT ON TABLE leasehold_internal.execution_workspaces IS
    'Execution workspaces: see the view leasehold.execution_workspaces';

CREATE TABLE leasehold_internal.issues (
    company_id             uuid NOT NULL REFERENCES leasehold.companies,
    id                     uuid NOT NULL,
    project_id             uuid,
    execution_workspace_id uuid,
    title                  text NOT NULL,
    status                 text NOT NULL DEFAULT 'open',
    closed                 boolean NOT NULL DEFAULT false,
    env                    jsonb NOT NULL DEFAULT '{}',
    metadata               jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at             timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (company_id, id),
    FOREIGN KEY (company_id, project_id) REFERENCES leasehold_internal.projects,
    FOREIGN KEY (company_id, execution_workspace_id) REFERENCES leasehold_internal.execution_workspaces
);
COMMENT ON TABLE leasehold_internal.issues IS 'Issues: see the view leasehold.issues';

SELECT leasehold_internal.protect(t, 'viewer')
  FROM pg_catalog.unnest(ARRAY['leasehold_internal.agents', 'leasehold_internal.projects',
           'leasehold_internal.routines', 'leasehold_internal.execution_workspaces',
           'leasehold_internal.issues']::regclass[]) AS t;

CREATE VIEW leasehold.agents WITH (security_barrier) AS
    SELECT a.company_id, a.id, a.name, a.adapter_type, a.status,
           CASE WHEN a.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN a.env END AS env,
           CASE WHEN a.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN a.metadata END AS metadata,
           a.created_at, a.updated_at
      FROM leasehold_internal.agents AS a;
COMMENT ON VIEW leasehold.agents IS 'Agents of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.projects WITH (security_barrier) AS
    SELECT p.company_id, p.id, p.name, p.status,
           CASE WHEN p.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN p.env END AS env,
           CASE WHEN p.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN p.metadata END AS metadata,
           p.created_at, p.updated_at
      FROM leasehold_internal.projects AS p;
COMMENT ON VIEW leasehold.projects IS 'Projects of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.routines WITH (security_barrier) AS
    SELECT r.company_id, r.id, r.name, r.status,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.env END AS env,
           CASE WHEN r.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN r.metadata END AS metadata,
           r.created_at, r.updated_at
      FROM leasehold_internal.routines AS r;
COMMENT ON VIEW leasehold.routines IS 'Routines of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.execution_workspaces WITH (security_barrier) AS
    SELECT w.company_id, w.id, w.project_id, w.name, w.mode, w.status,
           CASE WHEN w.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN w.env END AS env,
           CASE WHEN w.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN w.metadata END AS metadata,
           w.created_at, w.updated_at
      FROM leasehold_internal.execution_workspaces AS w;
COMMENT ON VIEW leasehold.execution_workspaces IS
    'Execution workspaces of the application; env and metadata are shown from level user on';

CREATE VIEW leasehold.issues WITH (security_barrier) AS
    SELECT i.company_id, i.id, i.project_id, i.execution_workspace_id, i.title, i.status, i.closed,
           CASE WHEN i.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN i.env END AS env,
           CASE WHEN i.company_id = ANY ((SELECT leasehold.visible_companies('user'))::uuid[]) THEN i.metadata END AS metadata,
           i.created_at, i.updated_at
      FROM leasehold_internal.issues AS i;
COMMENT ON VIEW leasehold.issues IS 'Issues of the application; env and metadata are shown from level user on';

-- Looking up what an argument names; each refuses what is not the company's.

CREATE FUNCTION leasehold_internal.require_agent(company_id uuid, agent_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF agent_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.agents AS a
      WHERE a.company_id = require_agent.company_id AND a.id = require_agent.agent_id AND a.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('agent_not_found',
            pg_catalog.format('agent %s does not exist or is archived', agent_id),
            'Make it known with upsert_agent().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_agent(uuid, uuid) IS 'Refuses unless the agent is the company''s and in use';

CREATE FUNCTION leasehold_internal.require_project(company_id uuid, project_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF project_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.projects AS p
      WHERE p.company_id = require_project.company_id AND p.id = require_project.project_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('project_not_found',
            pg_catalog.format('project %s does not exist', project_id), 'Make it known with upsert_project().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_project(uuid, uuid) IS 'Refuses unless the project is the company''s';

CREATE FUNCTION leasehold_internal.require_issue(company_id uuid, issue_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF issue_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.issues AS i
      WHERE i.company_id = require_issue.company_id AND i.id = require_issue.issue_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('issue_not_found',
            pg_catalog.format('issue %s does not exist', issue_id), 'Make it known with upsert_issue().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_issue(uuid, uuid) IS 'Refuses unless the issue is the company''s';

CREATE FUNCTION leasehold_internal.require_workspace(company_id uuid, execution_workspace_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF execution_workspace_id IS NULL THEN RETURN; END IF;
    PERFORM FROM leasehold_internal.execution_workspaces AS w
      WHERE w.company_id = require_workspace.company_id AND w.id = require_workspace.execution_workspace_id
        AND w.status = 'active';
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('execution_workspace_not_found',
            pg_catalog.format('execution workspace %s does not exist or is archived', execution_workspace_id),
            'Make it known with upsert_execution_workspace().');
    END IF;
END
$$;
COMMENT ON FUNCTION leasehold_internal.require_workspace(uuid, uuid) IS
    'Refuses unless the execution workspace is the company''s and in use';

-- Upserts.  NULL keeps what is there, or means the default in a new row.

CREATE FUNCTION leasehold_internal.upsert_agent(
        agent_id uuid, name text DEFAULT NULL, adapter_type text DEFAULT NULL,
        env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_agent.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_agent.name);
    PERFORM leasehold_internal.check_text('adapter_type', upsert_agent.adapter_type);
    PERFORM leasehold_internal.check_env('env', upsert_agent.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_agent.metadata);
    INSERT INTO leasehold_internal.agents AS a (company_id, id, name, adapter_type, env, metadata)
    VALUES (v_company, upsert_agent.agent_id, COALESCE(upsert_agent.name, upsert_agent.agent_id::text),
            upsert_agent.adapter_type, COALESCE(upsert_agent.env, '{}'), COALESCE(upsert_agent.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_agent.name, a.name),
           adapter_type = COALESCE(upsert_agent.adapter_type, a.adapter_type),
           env = COALESCE(upsert_agent.env, a.env),
           metadata = COALESCE(upsert_agent.metadata, a.metadata),
           status = 'active', updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'agent.created' ELSE 'agent.updated' END,
        'agent', upsert_agent.agent_id::text, agent_id => upsert_agent.agent_id);
    RETURN upsert_agent.agent_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_agent', 'instant',
    'makes an agent known or changes it; an archived one is in use again', 'leasehold_app');

CREATE FUNCTION leasehold_internal.archive_agent(agent_id uuid, company text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(archive_agent.company, 'user');
BEGIN
    UPDATE leasehold_internal.agents AS a SET status = 'archived', updated_at = pg_catalog.now()
     WHERE a.company_id = v_company AND a.id = archive_agent.agent_id;
    IF NOT FOUND THEN
        PERFORM leasehold_internal.refuse('agent_not_found',
            pg_catalog.format('agent %s does not exist', archive_agent.agent_id));
    END IF;
    PERFORM leasehold_internal.record(v_company, 'agent.archived', 'agent', archive_agent.agent_id::text,
        agent_id => archive_agent.agent_id);
    -- nobody could take its parked resources into use again
    PERFORM leasehold_internal.retire_leases(v_company,
        ARRAY(SELECT l.id FROM leasehold.leases AS l
               WHERE l.company_id = v_company AND l.agent_id = archive_agent.agent_id
                 AND leasehold_internal.may_have_resource(l.status)),
        'agent_archived', unused_too => false, not_to_be_parked => '{reuse_by_environment}');
    PERFORM leasehold_internal.warn_if_unserved();
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.archive_agent', 'instant',
    'stops new leases and runs of an agent and removes its parked resources; upsert_agent() undoes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_project(
        project_id uuid, name text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_project.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_project.name);
    PERFORM leasehold_internal.check_env('env', upsert_project.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_project.metadata);
    INSERT INTO leasehold_internal.projects AS p (company_id, id, name, env, metadata)
    VALUES (v_company, upsert_project.project_id, COALESCE(upsert_project.name, upsert_project.project_id::text),
            COALESCE(upsert_project.env, '{}'), COALESCE(upsert_project.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_project.name, p.name),
           env = COALESCE(upsert_project.env, p.env),
           metadata = COALESCE(upsert_project.metadata, p.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'project.created' ELSE 'project.updated' END,
        'project', upsert_project.project_id::text);
    RETURN upsert_project.project_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_project', 'instant',
    'makes a project known or changes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_routine(
        routine_id uuid, name text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL,
        company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_routine.company, 'user');
    v_created boolean;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_routine.name);
    PERFORM leasehold_internal.check_env('env', upsert_routine.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_routine.metadata);
    INSERT INTO leasehold_internal.routines AS r (company_id, id, name, env, metadata)
    VALUES (v_company, upsert_routine.routine_id, COALESCE(upsert_routine.name, upsert_routine.routine_id::text),
            COALESCE(upsert_routine.env, '{}'), COALESCE(upsert_routine.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_routine.name, r.name),
           env = COALESCE(upsert_routine.env, r.env),
           metadata = COALESCE(upsert_routine.metadata, r.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'routine.created' ELSE 'routine.updated' END,
        'routine', upsert_routine.routine_id::text);
    RETURN upsert_routine.routine_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_routine', 'instant',
    'makes a routine known or changes it', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_execution_workspace(
        execution_workspace_id uuid, name text DEFAULT NULL, project_id uuid DEFAULT NULL, mode text DEFAULT NULL,
        status text DEFAULT NULL, env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_execution_workspace.company, 'user');
    v_id      uuid := upsert_execution_workspace.execution_workspace_id;
    v_created boolean;
    v_status  text;
BEGIN
    PERFORM leasehold_internal.check_text('name', upsert_execution_workspace.name);
    PERFORM leasehold_internal.check_text('mode', upsert_execution_workspace.mode);
    PERFORM leasehold_internal.check_env('env', upsert_execution_workspace.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_execution_workspace.metadata);
    IF upsert_execution_workspace.status IS NOT NULL THEN
        PERFORM leasehold_internal.check_choice('status', upsert_execution_workspace.status, 'active', 'archived');
    END IF;
    PERFORM leasehold_internal.require_project(v_company, upsert_execution_workspace.project_id);
    INSERT INTO leasehold_internal.execution_workspaces AS w
           (company_id, id, project_id, name, mode, status, env, metadata)
    VALUES (v_company, v_id, upsert_execution_workspace.project_id,
            COALESCE(upsert_execution_workspace.name, v_id::text), upsert_execution_workspace.mode,
            COALESCE(upsert_execution_workspace.status, 'active'),
            COALESCE(upsert_execution_workspace.env, '{}'), COALESCE(upsert_execution_workspace.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET name = COALESCE(upsert_execution_workspace.name, w.name),
           project_id = COALESCE(upsert_execution_workspace.project_id, w.project_id),
           mode = COALESCE(upsert_execution_workspace.mode, w.mode),
           status = COALESCE(upsert_execution_workspace.status, w.status),
           env = COALESCE(upsert_execution_workspace.env, w.env),
           metadata = COALESCE(upsert_execution_workspace.metadata, w.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0, w.status INTO v_created, v_status;
    PERFORM leasehold_internal.record(v_company,
        CASE WHEN v_created THEN 'execution_workspace.created' ELSE 'execution_workspace.updated' END,
        'execution_workspace', v_id::text, pg_catalog.jsonb_build_object('status', v_status));
    IF v_status = 'archived' THEN
        PERFORM leasehold_internal.end_company_leases(v_company,
            ARRAY(SELECT l.id FROM leasehold.leases AS l
                   WHERE l.company_id = v_company AND l.execution_workspace_id = v_id
                     AND leasehold_internal.may_have_resource(l.status)),
            'expired', 'delete', 'execution_workspace_closed');
    END IF;
    RETURN v_id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_execution_workspace', 'instant',
    'makes an execution workspace known or changes it; archiving it ends its leases', 'leasehold_app');

CREATE FUNCTION leasehold_internal.upsert_issue(
        issue_id uuid, title text DEFAULT NULL, status text DEFAULT NULL, closed boolean DEFAULT NULL,
        project_id uuid DEFAULT NULL, execution_workspace_id uuid DEFAULT NULL,
        env jsonb DEFAULT NULL, metadata jsonb DEFAULT NULL, company text DEFAULT NULL)
    RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_company uuid := leasehold_internal.enter_company(upsert_issue.company, 'user');
    v_created boolean;
    v_issue   leasehold_internal.issues;
BEGIN
    PERFORM leasehold_internal.check_text('title', upsert_issue.title, 1000);
    PERFORM leasehold_internal.check_text('status', upsert_issue.status);
    PERFORM leasehold_internal.check_env('env', upsert_issue.env);
    PERFORM leasehold_internal.check_object('metadata', upsert_issue.metadata);
    PERFORM leasehold_internal.require_project(v_company, upsert_issue.project_id);
    PERFORM leasehold_internal.require_workspace(v_company, upsert_issue.execution_workspace_id);
    INSERT INTO leasehold_internal.issues AS i
           (company_id, id, project_id, execution_workspace_id, title, status, closed, env, metadata)
    VALUES (v_company, upsert_issue.issue_id, upsert_issue.project_id, upsert_issue.execution_workspace_id,
            COALESCE(upsert_issue.title, upsert_issue.issue_id::text), COALESCE(upsert_issue.status, 'open'),
            COALESCE(upsert_issue.closed, false), COALESCE(upsert_issue.env, '{}'),
            COALESCE(upsert_issue.metadata, '{}'))
    ON CONFLICT (company_id, id) DO UPDATE
       SET title = COALESCE(upsert_issue.title, i.title),
           status = COALESCE(upsert_issue.status, i.status),
           closed = COALESCE(upsert_issue.closed, i.closed),
           project_id = COALESCE(upsert_issue.project_id, i.project_id),
           execution_workspace_id = COALESCE(upsert_issue.execution_workspace_id, i.execution_workspace_id),
           env = COALESCE(upsert_issue.env, i.env),
           metadata = COALESCE(upsert_issue.metadata, i.metadata),
           updated_at = pg_catalog.now()
    RETURNING xmax = 0 INTO v_created;
    SELECT i.* INTO v_issue FROM leasehold_internal.issues AS i
     WHERE i.company_id = v_company AND i.id = upsert_issue.issue_id;
    PERFORM leasehold_internal.record(v_company, CASE WHEN v_created THEN 'issue.created' ELSE 'issue.updated' END,
        'issue', v_issue.id::text,
        pg_catalog.jsonb_build_object('status', v_issue.status, 'closed', v_issue.closed), issue_id => v_issue.id);
    IF v_issue.closed THEN
        -- a lease that a run holds ends with its run
        PERFORM leasehold_internal.retire_leases(v_company,
            ARRAY(SELECT l.id FROM leasehold.leases AS l
                   WHERE l.company_id = v_company AND l.issue_id = v_issue.id
                     AND leasehold_internal.may_have_resource(l.status)),
            'issue_terminal_' || v_issue.status, unused_too => true,
            not_to_be_parked => '{reuse_by_environment,retain_on_failure}');
    END IF;
    RETURN v_issue.id;
END
$$;
SELECT leasehold_internal.publish('leasehold_internal.upsert_issue', 'instant',
    'makes an issue known or changes it; closing it ends its leases, those of running runs with their run', 'leasehold_app');
