"""random: tokens drawn uniformly. The control every informed rule has to beat."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=(), keeps="sampled")
def score(inputs: RuleInputs) -> np.ndarray:
    """1 everywhere."""
    return np.ones(len(inputs), dtype=np.float32)
