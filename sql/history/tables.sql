-- tables: names the database and its table of tasks; other files write it as :tables.
--
-- It is the same on a primary and on its standbys.
concat_ws(' ', current_database(), 'tasks'::regclass::oid)
