"""Connections to PostgreSQL, its schema, and the embedded server."""
