"""Pairs of student and teacher that are made here, one a file."""
