-- The yardstick of a lease request: one row of similar size with one key.
INSERT INTO bare_row (body) VALUES ('environment.lease_requested');
