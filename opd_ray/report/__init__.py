"""What a run was, as one HTML page for people; no engine is needed to read a run's folder."""
