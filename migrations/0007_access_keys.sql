-- API keys. Only their SHA-256 is stored.
--
-- depends: 0006_reading

DO $$ BEGIN
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', TRUE);
END $$;

CREATE TABLE access_keys (
    key_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9._@-]{1,100}$'),
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    scopes text[] NOT NULL
    CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'record', 'admin']),
    -- The key reads and records tasks of this project alone; NULL: of all.
    project_id uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz
);
