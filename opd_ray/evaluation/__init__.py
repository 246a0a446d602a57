"""Evaluation: estimators of accuracy from repeated samples."""
