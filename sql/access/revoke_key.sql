-- revoke_key: have a key refused from now on; no row where none of that name is kept.
--
-- $1 name text
--
-- revoked_at: timestamptz, the first time that it was revoked.
UPDATE access_keys
SET revoked_at = COALESCE(revoked_at, clock_timestamp())
WHERE name = $1::text
RETURNING revoked_at
