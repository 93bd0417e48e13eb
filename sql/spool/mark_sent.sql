-- mark_sent: says that records are about to be sent. Their bodies never change again.
UPDATE record
SET sent_once = 1, tried = tried + 1
WHERE id IN (SELECT value FROM json_each(:ids));
