"""The shopping half of DeepPlanning: its fifteen tools and its score, for evaluation."""
