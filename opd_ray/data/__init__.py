"""Prompt sources: reading, checking, shuffling and tokenising the prompts of a run."""
