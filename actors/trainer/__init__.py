"""The trainer: DeepSpeed around the student, one process a rank.

Nothing is imported here: the actor's process sets thread counts before torch starts.
"""
