"""The Ray actors: rollout (vLLM), teacher, trainer (DeepSpeed) and the weight transfer between them."""
