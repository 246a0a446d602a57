"""DeepPlanning, a benchmark of agents, over the user's clone of Qwen-Agent and its databases."""
