-- Companies, memberships, and the choice of a company.
\pset format unaligned
\pset tuples_only on
SET ROLE regress_admin;

-- A company has a key for good, and an id that can be brought along.
SELECT test.is('made', leasehold.create_company('gamma', 'Gamma GmbH', test.id('gamma')), test.id('gamma'));
SELECT test.is('what is stored', (c.id = test.id('gamma'), c.name, c.status)::text, '(t,"Gamma GmbH",active)') FROM leasehold.companies AS c WHERE c.key = 'gamma';
SELECT leasehold.create_company('delta') IS NOT NULL AS made;
SELECT test.is('named by its key by default', c.name, 'delta') FROM leasehold.companies AS c WHERE c.key = 'delta';
SELECT test.is('told', string_agg(e.action || ' ' || e.details::text, ''), 'company.created {"key": "gamma"}') FROM leasehold.audit_events AS e WHERE e.company_id = test.id('gamma');
SELECT test.refused('the same key', $$SELECT leasehold.create_company('gamma')$$, 'already_exists');
SELECT test.refused('the same id', $$SELECT leasehold.create_company('gamma2', company_id => test.id('gamma'))$$, 'already_exists');
SELECT test.refused('the id that stands for all', $$SELECT leasehold.create_company('nil', company_id => '00000000-0000-0000-0000-000000000000')$$, 'argument_invalid');
SELECT test.refused('a key of capitals', $$SELECT leasehold.create_company('Gamma')$$, 'key_invalid');
SELECT test.refused('an empty key', $$SELECT leasehold.create_company('')$$, 'key_invalid');
SELECT test.refused('an overlong name', $$SELECT leasehold.create_company('long', repeat('x', 201))$$, 'argument_too_large');
SELECT test.is('none of them was made', count(*), 2) FROM leasehold.companies AS c WHERE c.key NOT IN ('acme', 'beta');

-- Members: by role, each with a level.
SELECT leasehold.grant_company('gamma', 'regress_nobody', 'viewer');
SELECT test.is('what is stored', (m.level, m.asserts_actor, m.granted_by, m.role_oid = 'regress_nobody'::regrole)::text, '(viewer,f,regress_admin,t)')
  FROM leasehold.company_members AS m WHERE m.company_id = test.id('gamma');
SELECT leasehold.grant_company('gamma', 'regress_nobody', 'manager', true);
SELECT test.is('granting again changes the level', string_agg(m.level || ' ' || m.asserts_actor, ', '), 'manager true') FROM leasehold.company_members AS m WHERE m.company_id = test.id('gamma');
SELECT test.refused('an unknown role', $$SELECT leasehold.grant_company('gamma', 'regress_missing')$$, 'role_not_found');
SELECT test.refused('everybody', $$SELECT leasehold.grant_company('gamma', 'public')$$, 'role_not_found');
SELECT test.refused('a role''s name cut to the length of names', $$SELECT leasehold.grant_company('gamma', 'regress_nobody' || repeat(' ', 60))$$, 'role_not_found');
SELECT test.refused('one of our own roles', format('SELECT leasehold.grant_company(''gamma'', %L)', r), 'role_unsuitable')
  FROM unnest(ARRAY['leasehold_owner', 'leasehold_worker', 'leasehold_admin', 'leasehold_app']) AS r;
SELECT test.refused('an unknown level', $$SELECT leasehold.grant_company('gamma', 'regress_nobody', 'owner')$$, 'argument_invalid');
SELECT test.refused('an unknown company', $$SELECT leasehold.grant_company('omega', 'regress_nobody')$$, 'company_not_found');
-- a manager grants and revokes, too
SET ROLE regress_nobody;
SELECT test.works('by a manager', $$SELECT leasehold.grant_company('gamma', 'regress_stranger', 'user')$$);
SELECT test.works('a manager revokes', $$SELECT leasehold.revoke_company('gamma', 'regress_stranger')$$);
SELECT test.refused('once', $$SELECT leasehold.revoke_company('gamma', 'regress_stranger')$$, 'member_not_found');
SELECT test.refused('not in another company', $$SELECT leasehold.grant_company('acme', 'regress_nobody', 'manager')$$, 'company_not_found');
SELECT test.is('it sees its company and members', (SELECT string_agg(c.key, ',') FROM leasehold.companies AS c) || ' ' || (SELECT string_agg(m.role_name, ',') FROM leasehold.company_members AS m), 'gamma regress_nobody');
-- from the next statement on, in every session
SELECT leasehold.revoke_company('gamma', 'regress_nobody');
SELECT test.is('after its own end it sees nothing', count(*), 0) FROM leasehold.companies;
SELECT test.refused('nor may it act', $$SELECT leasehold.grant_company('gamma', 'regress_nobody', 'manager')$$, 'company_not_found');
SET ROLE regress_admin;
SELECT test.is('told', string_agg(e.action || ' ' || e.entity_id || ' ' || e.details::text, ', ' ORDER BY e.occurred_at),
    'company.member_granted regress_nobody {"level": "viewer", "pending": false, "assertsActor": false}, company.member_granted regress_nobody {"level": "manager", "pending": false, "assertsActor": true}, '
    'company.member_granted regress_stranger {"level": "user", "pending": true, "assertsActor": false}, company.member_revoked regress_stranger {}, company.member_revoked regress_nobody {}')
  FROM leasehold.audit_events AS e WHERE e.company_id = test.id('gamma') AND e.entity_type = 'company_member';

-- Memberships are inherited as privileges are: through roles whose privileges one has.
RESET ROLE;
CREATE ROLE regress_team;
CREATE ROLE regress_inheriting LOGIN IN ROLE regress_team, leasehold_app;
CREATE ROLE regress_noinherit LOGIN NOINHERIT IN ROLE regress_team;
GRANT leasehold_app TO regress_noinherit;
SELECT leasehold.grant_company('gamma', 'regress_team', 'user');
SET ROLE regress_inheriting;
SELECT test.works('by inheritance', $$SELECT leasehold.upsert_agent(test.id('team agent'))$$);
SET ROLE regress_noinherit;
SELECT test.fails('without inheritance there is not even the group''s privilege', $$SELECT leasehold.upsert_agent(test.id('team agent'))$$, '42501');
RESET ROLE;
GRANT leasehold_app TO regress_team;
SET SESSION AUTHORIZATION regress_noinherit;
SET ROLE regress_team;
SELECT test.works('but SET ROLE works', $$SELECT leasehold.upsert_agent(test.id('team agent'))$$);
RESET SESSION AUTHORIZATION;
SELECT test.is('and is told as the role set', string_agg(DISTINCT e.acting_role, ','), 'regress_inheriting,regress_team') FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('team agent')::text;
-- the highest level counts, and the end of one membership leaves the other
SELECT leasehold.grant_company('gamma', 'regress_inheriting', 'manager');
SET ROLE regress_inheriting;
SELECT test.works('manager by its own', $$SELECT leasehold.create_environment('of-gamma', 'fake')$$);
RESET ROLE;
SELECT leasehold.revoke_company('gamma', 'regress_inheriting');
SET ROLE regress_inheriting;
SELECT test.refused('no more', $$SELECT leasehold.create_environment('of-gamma-2', 'fake')$$, 'forbidden');
SELECT test.works('still user by its team', $$SELECT leasehold.upsert_agent(test.id('team agent'))$$);
RESET ROLE;
REVOKE regress_team FROM regress_inheriting;
SET ROLE regress_inheriting;
SELECT test.refused('out of the team, out of the company', $$SELECT leasehold.upsert_agent(test.id('team agent'))$$, 'company_ambiguous');

-- A role that was dropped and made again is not the member; the DBA says if it is.
RESET ROLE;
CREATE ROLE regress_phoenix LOGIN IN ROLE leasehold_app;
SELECT leasehold.grant_company('gamma', 'regress_phoenix', 'manager');
SET ROLE regress_phoenix;
SELECT test.is('a member', count(*), 1) FROM leasehold.companies;
RESET ROLE;
DROP ROLE regress_phoenix;
CREATE ROLE regress_phoenix LOGIN IN ROLE leasehold_app;
SET ROLE regress_phoenix;
SELECT test.is('of that name, but another', count(*), 0) FROM leasehold.companies;
SELECT test.refused('may nothing', $$SELECT leasehold.upsert_agent(test.id('phoenix'), company => 'gamma')$$, 'company_not_found');
SELECT test.fails('least of all repair itself', $$SELECT leasehold.repair_members()$$, '42501');
SET ROLE regress_admin;
SELECT test.is('the doctor finds it', d.finding, 'the membership of role "regress_phoenix" in company "gamma" is not valid here') FROM leasehold.doctor() AS d WHERE d.code = 'member_dangling';
SELECT test.is('repaired', leasehold.repair_members('gamma'), 1);
SELECT test.is('once', leasehold.repair_members('gamma'), 0);
SET ROLE regress_phoenix;
SELECT test.is('a member again', count(*), 1) FROM leasehold.companies;
RESET ROLE;
-- renamed, it is another, too
ALTER ROLE regress_phoenix RENAME TO regress_ashes;
SET ROLE regress_ashes;
SELECT test.is('by another name', count(*), 0) FROM leasehold.companies;
RESET ROLE;
ALTER ROLE regress_ashes RENAME TO regress_phoenix;
SET ROLE regress_phoenix;
SELECT test.is('by the old one', count(*), 1) FROM leasehold.companies;
RESET ROLE;
-- and after a restore into another cluster nobody is a member by the accident of a name
UPDATE leasehold.company_members SET system_identifier = '1' WHERE role_name = 'regress_phoenix';
SET ROLE regress_phoenix;
SELECT test.is('from elsewhere', count(*), 0) FROM leasehold.companies;
SET ROLE regress_admin;
SELECT test.is('repaired', leasehold.repair_members(), 1);
SET ROLE regress_phoenix;
SELECT test.is('a member again', count(*), 1) FROM leasehold.companies;
RESET ROLE;

-- What a manager grants, the role has to accept.  Until then it is as if it were not:
-- nobody can be made ambiguous, nor be drawn into a company that he did not want.
CREATE ROLE regress_invited LOGIN IN ROLE leasehold_app;
CREATE ROLE regress_joint LOGIN IN ROLE leasehold_app;
SELECT leasehold.grant_company('gamma', 'regress_phoenix', 'manager', true);
SET ROLE regress_phoenix;
SELECT test.works('a member of another company', $$SELECT leasehold.grant_company('gamma', 'regress_user', 'manager')$$);
SELECT test.works('a member of none', $$SELECT leasehold.grant_company('gamma', 'regress_invited', 'manager', true)$$);
SELECT test.is('managers see who has not answered', string_agg(m.role_name || ' ' || m.pending, ', ' ORDER BY m.role_name), 'regress_invited true, regress_phoenix false, regress_team false, regress_user true') FROM leasehold.company_members AS m;
SET ROLE regress_user;
SELECT test.works('the one goes on in its company', $$SELECT leasehold.upsert_agent(test.id('undisturbed'))$$);
SELECT test.is('which is the old one', string_agg(c.key, ','), 'acme') FROM leasehold.companies AS c;
SELECT test.is('and sees nothing of the other', (cardinality(leasehold.visible_companies()), (SELECT count(*) FROM leasehold.company_members AS m WHERE m.company_id = test.id('gamma')))::text, '(1,0)');
SELECT test.is('but the invitation', (i.company, i.level, i.asserts_actor, i.granted_by)::text, '(gamma,manager,f,regress_phoenix)') FROM leasehold.invitations() AS i;
SET ROLE regress_invited;
SELECT test.refused('the other has no company', $$SELECT leasehold.upsert_agent(test.id('captured'))$$, 'company_ambiguous');
SELECT test.is('and sees none', (SELECT count(*) FROM leasehold.companies) + (SELECT count(*) FROM leasehold.company_members) + cardinality(leasehold.visible_companies()), 0);
SELECT test.refused('cannot choose it', $$SELECT leasehold.use_company('gamma')$$, 'company_not_found');
SELECT test.refused('nor name it', $$SELECT leasehold.upsert_agent(test.id('captured'), company => 'gamma')$$, 'company_not_found');
SELECT test.refused('nor let others in', $$SELECT leasehold.grant_company('gamma', 'regress_nobody', 'manager')$$, 'company_not_found');
SELECT test.refused('nor put anybody out', $$SELECT leasehold.revoke_company('gamma', 'regress_phoenix')$$, 'company_not_found');
SELECT test.is('invited', string_agg(i.company || ' ' || i.level || ' ' || i.asserts_actor, ','), 'gamma manager true') FROM leasehold.invitations() AS i;
SET ROLE regress_nobody;
SELECT test.is('who is not invited sees no invitation', count(*), 0) FROM leasehold.invitations();
SELECT test.refused('and has none to accept', $$SELECT leasehold.accept_company('gamma')$$, 'company_not_found');
SELECT test.is('word for word as of what does not exist', replace(a.message, 'gamma', 'omega') || a.hint, b.message || b.hint)
  FROM test.error($$SELECT leasehold.accept_company('gamma')$$) AS a, test.error($$SELECT leasehold.accept_company('omega')$$) AS b;
-- only the role itself accepts, for what is offered at that moment
SET ROLE regress_phoenix;
SELECT test.is('not the manager', leasehold.accept_company('gamma'), test.id('gamma'));
SELECT test.is('whose own membership it is about', bool_and(m.pending), true) FROM leasehold.company_members AS m WHERE m.role_name IN ('regress_invited', 'regress_user');
SELECT test.works('the manager thinks again', $$SELECT leasehold.grant_company('gamma', 'regress_invited', 'user')$$);
SET ROLE regress_invited;
SELECT test.is('changed', i.level || ' ' || i.asserts_actor, 'user false') FROM leasehold.invitations() AS i;
SELECT test.refused('not in a transaction that only reads', $$SELECT set_config('transaction_read_only', 'on', true), leasehold.accept_company('gamma')$$, 'read_only');
SELECT test.is('accepted', leasehold.accept_company('gamma'), test.id('gamma'));
SELECT test.works('now it is a member', $$SELECT leasehold.upsert_agent(test.id('captured'))$$);
SELECT test.is('with the level that it was given', (cardinality(leasehold.visible_companies('user')), cardinality(leasehold.visible_companies('manager')))::text, '(1,0)');
SELECT test.is('and is invited no more', count(*), 0) FROM leasehold.invitations();
SELECT test.is('accepting again changes nothing', leasehold.accept_company('gamma'), test.id('gamma'));
SET ROLE regress_phoenix;
SELECT test.works('who has accepted is not asked when the level changes', $$SELECT leasehold.grant_company('gamma', 'regress_invited', 'viewer')$$);
SET ROLE regress_invited;
SELECT test.is('it changes at once', (cardinality(leasehold.visible_companies('viewer')), cardinality(leasehold.visible_companies('user')))::text, '(1,0)');
-- a role may always go, and need not come
SELECT test.works('a viewer leaves', $$SELECT leasehold.revoke_company('gamma', 'regress_invited')$$);
SELECT test.is('and is out', cardinality(leasehold.visible_companies()), 0);
SELECT test.refused('once', $$SELECT leasehold.revoke_company('gamma', 'regress_invited')$$, 'company_not_found');
SET ROLE regress_user;
SELECT test.works('the other declines', $$SELECT leasehold.revoke_company('gamma', 'regress_user')$$);
SELECT test.is('the invitation is gone', count(*), 0) FROM leasehold.invitations();
SELECT test.refused('for good', $$SELECT leasehold.accept_company('gamma')$$, 'company_not_found');
SELECT test.refused('a user cannot put others out', $$SELECT leasehold.revoke_company('acme', 'regress_viewer')$$, 'forbidden');
-- a role with members is not asked, as each of them could answer for all
RESET ROLE;
CREATE ROLE regress_crew IN ROLE leasehold_app;
GRANT regress_crew TO regress_joint, regress_phoenix;
SELECT leasehold.grant_company('delta', 'regress_joint', 'user');
SET SESSION AUTHORIZATION regress_phoenix;
SELECT test.works('a manager grants to a group that it is in', $$SELECT leasehold.grant_company('gamma', 'regress_crew', 'user')$$);
SET ROLE regress_crew;
SELECT test.refused('it may act as the group, but not accept', $$SELECT leasehold.accept_company('gamma')$$, 'forbidden');
RESET SESSION AUTHORIZATION;
SET ROLE regress_joint;
SELECT test.works('its other members go on in their company', $$SELECT leasehold.upsert_agent(test.id('undisturbed'))$$);
SET ROLE regress_admin;
SELECT leasehold.grant_company('gamma', 'regress_crew', 'user');
SELECT test.is('an administrator asks nobody', m.pending, false) FROM leasehold.company_members AS m WHERE m.role_name = 'regress_crew';
SET ROLE regress_crew;
SELECT test.refused('nor may a member end what all have', $$SELECT leasehold.revoke_company('gamma', 'regress_crew')$$, 'forbidden');
SET ROLE regress_joint;
BEGIN;
SELECT leasehold.use_company('gamma') IS NOT NULL AS chosen;
SELECT test.refused('a membership of a group is not its members'' own', $$SELECT leasehold.accept_company('gamma')$$, 'member_not_found');
COMMIT;
-- who is asked is the role, not its name
SET ROLE regress_phoenix;
SELECT leasehold.grant_company('gamma', 'regress_invited', 'user');
RESET ROLE;
DROP OWNED BY regress_invited;
DROP ROLE regress_invited;
CREATE ROLE regress_invited LOGIN IN ROLE leasehold_app;
SET ROLE regress_invited;
SELECT test.is('another of that name is not invited', count(*), 0) FROM leasehold.invitations();
SELECT test.refused('and cannot accept', $$SELECT leasehold.accept_company('gamma')$$, 'company_not_found');
SET ROLE regress_admin;
SELECT test.is('repaired', leasehold.repair_members('gamma'), 1);
SET ROLE regress_invited;
SELECT test.is('it is invited, not a member', (SELECT count(*) FROM leasehold.invitations()) || ' ' || cardinality(leasehold.visible_companies()), '1 0');
SELECT test.is('accepted', leasehold.accept_company('gamma'), test.id('gamma'));
RESET ROLE;
DROP OWNED BY regress_invited;
DROP ROLE regress_invited;
CREATE ROLE regress_invited LOGIN IN ROLE leasehold_app;
SET ROLE regress_phoenix;
SELECT leasehold.grant_company('gamma', 'regress_invited', 'user');
SELECT test.is('what another has accepted is asked again', m.pending, true) FROM leasehold.company_members AS m WHERE m.role_name = 'regress_invited';
SET ROLE regress_admin;
SELECT test.is('told', string_agg(replace(e.action, 'company.member_', '') || ' ' || COALESCE(e.details ->> 'pending', ''), ', ' ORDER BY e.occurred_at),
    'granted true, granted true, accepted , granted false, revoked , granted true, repaired , accepted , granted true')
  FROM leasehold.audit_events AS e WHERE e.company_id = test.id('gamma') AND e.entity_type = 'company_member' AND e.entity_id = 'regress_invited';
RESET ROLE;
SELECT leasehold.revoke_company('gamma', r) FROM unnest(ARRAY['regress_phoenix', 'regress_invited', 'regress_crew']) AS r;
SELECT leasehold.revoke_company('delta', 'regress_joint');
DROP ROLE regress_phoenix, regress_invited, regress_crew, regress_joint;

-- Which company: the argument, else what was chosen for this transaction, else the only one.
SET ROLE regress_both;
SELECT test.refused('of several, none', $$SELECT leasehold.upsert_agent(test.id('which'))$$, 'company_ambiguous');
SELECT test.works('by argument', $$SELECT leasehold.upsert_agent(test.id('which'), 'by argument', company => 'beta')$$);
BEGIN;
SELECT test.is('chosen', leasehold.use_company('acme'), test.id('acme'));
SELECT test.works('by choice', $$SELECT leasehold.upsert_agent(test.id('which'), 'by choice')$$);
SELECT test.is('the choice is seen', string_agg(a.name, ', '), 'by choice') FROM leasehold.agents AS a WHERE a.id = test.id('which');
SELECT test.works('an argument goes before', $$SELECT leasehold.upsert_agent(test.id('which'), 'in spite of the choice', company => 'beta')$$);
SELECT test.is('chosen again', leasehold.use_company('beta'), test.id('beta'));
SELECT test.is('the last choice counts', string_agg(a.name, ', '), 'in spite of the choice') FROM leasehold.agents AS a WHERE a.id = test.id('which');
COMMIT;
SELECT test.refused('it ends with the transaction', $$SELECT leasehold.upsert_agent(test.id('which'))$$, 'company_ambiguous');
SELECT test.is('and nothing is seen', count(*), 0) FROM leasehold.agents;
BEGIN;
SELECT test.is('chosen', leasehold.use_company('acme'), test.id('acme'));
ROLLBACK;
SELECT test.is('also with one that is undone', count(*), 0) FROM leasehold.agents;
-- a savepoint that is undone undoes its choice, and only that
BEGIN;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
SAVEPOINT a;
SELECT leasehold.use_company('beta') IS NOT NULL AS chosen;
SAVEPOINT b;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
RELEASE b;
SELECT test.is('of a released one it stays', string_agg(c.key, ','), 'acme') FROM leasehold.companies AS c;
ROLLBACK TO a;
SELECT test.is('as before the savepoint', string_agg(c.key, ','), 'acme') FROM leasehold.companies AS c;
SAVEPOINT c;
SELECT leasehold.use_company('beta') IS NOT NULL AS chosen;
SELECT test.is('another', string_agg(c.key, ','), 'beta') FROM leasehold.companies AS c;
ROLLBACK TO c;
SELECT test.is('undone', string_agg(c.key, ','), 'acme') FROM leasehold.companies AS c;
COMMIT;
BEGIN;
SAVEPOINT a;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
ROLLBACK TO a;
SELECT test.is('none', count(*), 0) FROM leasehold.companies AS c;
COMMIT;
-- an administrator's choice narrows what it sees, and does not widen again by itself
SET ROLE regress_admin;
BEGIN;
SELECT leasehold.use_company('acme') IS NOT NULL AS chosen;
SAVEPOINT a;
SELECT leasehold.use_company('beta') IS NOT NULL AS chosen;
ROLLBACK TO a;
SELECT test.is('one', string_agg(c.key, ','), 'acme') FROM leasehold.companies AS c;
COMMIT;
SELECT test.is('all', string_agg(c.key, ',' ORDER BY c.key), 'acme,beta,delta,gamma') FROM leasehold.companies AS c;
SET ROLE regress_user;
SELECT test.refused('what one does not belong to', $$SELECT leasehold.use_company('beta')$$, 'company_not_found');
SELECT test.refused('is as what does not exist', $$SELECT leasehold.use_company('omega')$$, 'company_not_found');
SELECT test.is('word for word', replace(a.message, 'beta', 'omega') || a.hint, b.message || b.hint)
  FROM test.error($$SELECT leasehold.use_company('beta')$$) AS a, test.error($$SELECT leasehold.use_company('omega')$$) AS b;
SELECT test.is('and is cut when it is long', length(e.message) < 100, true) FROM test.error($$SELECT leasehold.use_company(repeat('x', 100000))$$) AS e;

-- PostgREST: the role is set, then the claims choose among what it may do anyway.
SET ROLE regress_both;
BEGIN;
SET LOCAL request.jwt.claims = '{"company": "beta", "role": "regress_both", "sub": "1"}';
SELECT leasehold.pre_request();
SELECT test.is('by the claim', string_agg(c.key, ','), 'beta') FROM leasehold.companies AS c;
COMMIT;
SELECT test.is('for that request only', count(*), 0) FROM leasehold.companies AS c;
SET ROLE regress_manager;
BEGIN;
SET LOCAL request.jwt.claims = '{"actor": "user:bob"}';
SELECT leasehold.pre_request();
SELECT leasehold.upsert_agent(test.id('for bob')) IS NOT NULL AS made;
COMMIT;
SELECT test.is('an actor alone is of the only company', e.asserted_actor, 'user:bob') FROM leasehold.audit_events AS e WHERE e.entity_id = test.id('for bob')::text;
SELECT test.refused('a foreign company', $$SELECT leasehold.pre_request() FROM set_config('request.jwt.claims', '{"company": "beta"}', true)$$, 'company_not_found');
SET ROLE regress_user;
SELECT test.refused('an actor without the right', $$SELECT leasehold.pre_request() FROM set_config('request.jwt.claims', '{"company": "acme", "actor": "user:eve"}', true)$$, 'actor_forbidden');
SELECT test.works('claims of ' || COALESCE(c, 'nobody'), format('SELECT leasehold.pre_request() FROM set_config(''request.jwt.claims'', %L, true)', c))
  FROM unnest(ARRAY['', '{}', '[]', '"x"', 'null', '{"company": null}', '{"sub": "1"}']) AS c;
SELECT test.refused('a company that is a number', $$SELECT leasehold.pre_request() FROM set_config('request.jwt.claims', '{"company": 5}', true)$$, 'company_not_found');
SELECT test.fails('no JSON', $$SELECT leasehold.pre_request() FROM set_config('request.jwt.claims', 'nonsense', true)$$, '22P02');
SET ROLE regress_both;
SELECT test.refused('an actor of a role with two companies', $$SELECT leasehold.pre_request() FROM set_config('request.jwt.claims', '{"actor": "user:bob"}', true)$$, 'company_ambiguous');

-- A company that is not in use: nothing new.
RESET ROLE;
UPDATE leasehold.companies SET status = 'archived' WHERE key = 'gamma';
SELECT leasehold.grant_company('gamma', 'regress_inheriting', 'manager');
SET ROLE regress_inheriting;
SELECT test.refused('no lease', $$SELECT leasehold.request_lease('of-gamma')$$, 'company_inactive');
SELECT test.refused('no run', $$SELECT leasehold.start_run()$$, 'company_inactive');
SELECT test.refused('no environment', $$SELECT leasehold.create_environment('of-gamma-3', 'fake')$$, 'company_inactive');
RESET ROLE;
SELECT leasehold.revoke_company('gamma', 'regress_inheriting');
SELECT leasehold.revoke_company('gamma', 'regress_team');
DROP ROLE regress_inheriting, regress_noinherit, regress_team;
