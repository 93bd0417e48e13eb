-- grant_serving: let a role do what the service does, and nothing else; one row.
--
-- $1 role name  its name as it is, not as SQL would quote it
SELECT grant_serving($1::name) AS granted
