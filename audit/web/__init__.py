"""The HTTP side: routes, what stands before them, and how they respond."""
