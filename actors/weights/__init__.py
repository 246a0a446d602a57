"""Moving the trainer's weights into the rollout engines."""
