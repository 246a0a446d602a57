"""Evaluation: problems asked, responses judged and kept, figures from the records alone."""
