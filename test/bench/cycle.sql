-- A lease's whole life, waited for at both ends.
SELECT leasehold.request_lease('box') AS lease \gset
SELECT 1 / (w.status = 'active')::integer FROM leasehold.wait_for_lease(:lease::uuid, '20 seconds') AS w;
SELECT leasehold.release_lease(:lease::uuid);
SELECT 1 / (w.status = 'released')::integer FROM leasehold.wait_for_lease(:lease::uuid, '20 seconds') AS w;
