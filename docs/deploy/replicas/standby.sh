#!/bin/sh
# Copies the primary once, and runs as its standby. PGHOST, PGUSER and PGPASSWORD are how to connect
# to the primary; the copy keeps them. The arguments are for PostgreSQL.
set -eu
if [ ! -e "$PGDATA" ]; then
    # A copy that was interrupted is not complete.
    rm -rf "$PGDATA.copy"
    pg_basebackup --pgdata="$PGDATA.copy" --write-recovery-conf --checkpoint=fast
    mv "$PGDATA.copy" "$PGDATA"
fi
exec postgres "$@"
