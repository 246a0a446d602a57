"""Environments of other systems, named by import path; each needs its own package."""
