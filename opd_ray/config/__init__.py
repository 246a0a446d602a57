"""A run's configuration: its keys, how files become one, and what is refused."""
