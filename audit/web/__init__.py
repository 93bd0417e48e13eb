"""HTTP: the routes, the checks before them, and the responses."""
