"""all: every token the student wrote, whatever rho is; the baseline of every selection."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=(), keeps="all")
def score(inputs: RuleInputs) -> np.ndarray:
    """1 everywhere."""
    return np.ones(len(inputs), dtype=np.float32)
