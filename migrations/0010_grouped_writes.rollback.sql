DROP FUNCTION created_at_of_all;
