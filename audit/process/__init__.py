"""The processes that serve: a supervisor, its workers, and their connections."""
