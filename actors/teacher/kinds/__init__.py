"""The kinds of teacher, one a file, and what those that run a model share."""
