-- release_lease: lets another sender send at once.
DELETE FROM lease
WHERE holder = :holder;
