-- list_migrations: the migrations that are applied, in any order.
--
-- migration_id: text, the name of the file without its ending.
SELECT migration_id
FROM _yoyo_migration
