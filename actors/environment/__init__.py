"""Environments in processes of their own, so that what crashes or hangs there hurts no engine."""
