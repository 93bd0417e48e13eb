-- check_owner: whether we may migrate; one row.
--
-- may_create: boolean, whether we may make tables in the schema that we are in.
-- schema: text, its name; NULL where the search_path leads to none.
SELECT
    COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE) AS may_create,
    current_schema()::text AS schema
