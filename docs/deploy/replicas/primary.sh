#!/bin/sh
# Lets standbys connect with a password. PostgreSQL's image runs this once, when it has created the
# database. A standby copies the file that this changes, so it can become the primary.
echo 'host replication all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
