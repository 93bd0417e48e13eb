-- create_key: keep a new key; no row where one of that name is kept.
--
-- $1 name       text
-- $2 digest     bytea        SHA-256 of the key
-- $3 scopes     text[]       one at least
-- $4 project_id uuid         the only one it is for; NULL: all
-- $5 lasting    interval     how long it is good for; NULL: see $6
-- $6 expires_at timestamptz  until when; NULL, as $5: for ever
--
-- expires_at: timestamptz, NULL: never.
INSERT INTO access_keys (name, digest, scopes, project_id, expires_at)
VALUES (
    $1::text, $2::bytea, $3::text[], $4::uuid,
    COALESCE($6::timestamptz, clock_timestamp() + $5::interval)
)
ON CONFLICT (name) DO NOTHING
RETURNING expires_at
