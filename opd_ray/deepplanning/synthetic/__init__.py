"""A synthetic database for DeepPlanning's travel queries, in the official layout."""
