"""How texts become rows that a model reads: alignment, packing, micro-batches. NumPy only."""
