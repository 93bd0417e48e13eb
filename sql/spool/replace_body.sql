-- replace_body: replaces the body of a record that was never sent.
UPDATE record
SET body = :body
WHERE id = :id AND sent_once = 0;
