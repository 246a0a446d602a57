"""product: tokens drawn in proportion to entropy^alpha JSD^gamma."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("entropy", "jsd"), keeps="sampled")
def score(inputs: RuleInputs) -> np.ndarray:
    """h^alpha JSD^gamma, unclipped; an exponent of 0 leaves its score out."""
    return inputs.raw("entropy") ** inputs.alpha * inputs.raw("jsd") ** inputs.gamma
