"""The Ray actors: rollout (vLLM), teacher, trainer (DeepSpeed), and their weight transfer."""
