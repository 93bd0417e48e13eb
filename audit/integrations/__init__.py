"""Records what other programs execute. Each module is imported only by those who use it."""
