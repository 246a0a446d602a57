"""A teacher's answers on disk: recorded, replayed, and known by whose they are."""
