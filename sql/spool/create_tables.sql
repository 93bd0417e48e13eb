-- create_tables: makes the tables of a new spool. SQLite runs it each time that a spool is opened.

-- What the service has not accepted yet. AUTOINCREMENT never uses an id again, so a record that
-- was refused keeps its id and its place if it is tried again.
CREATE TABLE IF NOT EXISTS record (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('new', 'change')),
    body TEXT NOT NULL,
    made_at REAL NOT NULL,
    tried INTEGER NOT NULL DEFAULT 0,
    sent_once INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS record_task ON record (task_id, id);
CREATE INDEX IF NOT EXISTS record_kind ON record (kind, id);

-- What the service refused. A person decides what becomes of it.
CREATE TABLE IF NOT EXISTS refused (
    id INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    made_at REAL NOT NULL,
    tried INTEGER NOT NULL,
    refused_at REAL NOT NULL,
    problem TEXT NOT NULL
);

-- Tasks that are being executed, the process of each, and when that was first found to have ended.
CREATE TABLE IF NOT EXISTS running (
    task_id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    started TEXT NOT NULL,
    gone_at REAL
) WITHOUT ROWID;

-- The only row says who may send, and until when.
CREATE TABLE IF NOT EXISTS lease (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    holder TEXT NOT NULL,
    until REAL NOT NULL
);
