"""Attention and norms for processors and row layouts that the engines have no kernel for."""
