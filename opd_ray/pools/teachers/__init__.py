"""The replicas of every teacher as one: queued, scored once, replaced when they die."""
