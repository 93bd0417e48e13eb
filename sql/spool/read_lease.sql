-- read_lease: returns who may send, and until when.
SELECT holder, until
FROM lease;
