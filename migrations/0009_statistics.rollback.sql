DROP FUNCTION bound_services;
DROP FUNCTION outermost_bucket;
DROP FUNCTION count_bars;
DROP FUNCTION known_parts;
DROP TYPE bar_part;
