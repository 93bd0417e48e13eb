-- grant_reading: let a role read everything, and do nothing else; one row.
--
-- $1 role name  its name as it is, not as SQL would quote it
SELECT grant_reading($1::name) AS granted
