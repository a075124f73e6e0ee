SELECT leasehold.request_lease('box');
