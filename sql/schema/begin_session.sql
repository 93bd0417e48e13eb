-- begin_session: give the session its settings; one row.
--
-- $1 names text[]  the settings to make
-- $2 values text[]  their values, in the same order
--
-- settings: text[], each value as PostgreSQL writes it, in the same order.
SELECT array_agg(set_config(wanted.name, wanted.value, FALSE) ORDER BY wanted.place) AS settings
FROM
    unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (name, value, place)
