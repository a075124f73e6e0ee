-- Closed sets that became larger.
-- instead of: CREATE DOMAIN leasehold_internal.call_operation
-- without: CREATE DOMAIN leasehold_internal.call_operation
ALTER DOMAIN leasehold_internal.call_operation DROP CONSTRAINT call_operation_check;
ALTER DOMAIN leasehold_internal.call_operation ADD CONSTRAINT call_operation_check
    CHECK (VALUE IN ('acquire', 'resume', 'realize', 'release', 'destroy', 'destroy_stray', 'initialize', 'reconcile',
                     'lease_deadline', 'run_deadline', 'places', 'execute', 'cancel_command'));
-- instead of: CREATE DOMAIN leasehold_internal.call_slot
-- without: CREATE DOMAIN leasehold_internal.call_slot
ALTER DOMAIN leasehold_internal.call_slot DROP CONSTRAINT call_slot_check;
ALTER DOMAIN leasehold_internal.call_slot ADD CONSTRAINT call_slot_check
    CHECK (VALUE IN ('op', 'sweep', 'timer', 'run_timer', 'command', 'cancel'));

-- Another description.
-- instead of: SELECT leasehold_internal.publish('leasehold_internal.reset_breaker'
-- without: SELECT leasehold_internal.publish('leasehold_internal.reset_breaker'
COMMENT ON FUNCTION leasehold.reset_breaker(text) IS
    'instant: closes the circuit breaker of a provider, of its commands as "commands:KEY", or of a plugin as "plugin:KEY"; false if none was open';

-- It got an argument.
-- without: CREATE FUNCTION leasehold_internal.decide(
-- without: COMMENT ON FUNCTION leasehold_internal.decide(
DROP FUNCTION leasehold_internal.decide(text, boolean, text, text, integer, boolean, boolean, integer, integer);

-- It got a column.
-- instead of: CREATE TABLE leasehold_internal.installation
-- without: CREATE TABLE leasehold_internal.installation
ALTER TABLE leasehold_internal.installation ADD COLUMN dispatch_timeline integer;
