SELECT leasehold_internal.record(:company::uuid, 'bench.activity', 'bench', 'subject', '{"key": "value"}');
