-- read_position: a position that contains all that is committed now; one row.
--
-- position: text, as in position.sql.
SELECT :own_position AS position
