"""The benchmark's travel part: its nine tools as an environment, its plans and their score."""
