"""The task history: recording it, and reading pages, totals and single tasks."""
