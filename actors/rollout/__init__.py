"""The student's text: vLLM in a Ray actor, with the scores of every token it samples."""
