"""How commands show tasks to people and to programs. Knows neither HTTP nor the database."""
