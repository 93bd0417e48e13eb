-- end_statement: end the transaction that a cancelled statement has left open; one row.
SELECT TRUE AS is_ended
