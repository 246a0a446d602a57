"""q3_only: tokens where the student is confident and wrong (third quadrant, arXiv 2604.14084)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("entropy", "forward_kl"))
def score(inputs: RuleInputs) -> np.ndarray:
    """KL(teacher || student) (1 - h^), nats. Forward KL, whatever divergence the settings name."""
    return inputs.raw("forward_kl") * (1 - inputs.normalised("entropy"))
