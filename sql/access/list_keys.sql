-- list_keys: all keys ever made, the oldest first.
--
-- key_id: integer. name: text. digest: bytea, SHA-256 of the key. scopes: text[]. project_id: uuid,
-- NULL: all. created_at, expires_at, revoked_at: timestamptz, NULL: never. seconds_left: float8, by
-- the database's clock; NULL: it does not expire.
SELECT
    key_id, name, digest, scopes, project_id, created_at, expires_at, revoked_at,
    extract(EPOCH FROM expires_at - clock_timestamp())::float8 AS seconds_left
FROM access_keys
ORDER BY key_id
