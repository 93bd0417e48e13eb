-- take_lease: lets one sender send until a time.
INSERT INTO lease (one, holder, until)
VALUES (1, :holder, :until)
ON CONFLICT (one) DO UPDATE SET holder = excluded.holder, until = excluded.until;
