"""DeepPlanning, a benchmark of long plans made with tools, from the user's clone of Qwen-Agent."""
