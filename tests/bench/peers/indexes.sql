CREATE INDEX IF NOT EXISTS tasks_created_at ON tasks (created_at DESC, task_id DESC);
CREATE INDEX IF NOT EXISTS tasks_status ON tasks (status, created_at DESC, task_id DESC);
CREATE INDEX IF NOT EXISTS tasks_services_touched ON tasks USING gin (services_touched);
