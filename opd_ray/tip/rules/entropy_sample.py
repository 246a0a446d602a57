"""entropy_sample: tokens drawn in proportion to the student's entropy (TIP, arXiv 2604.14084)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("entropy",), keeps="sampled")
def score(inputs: RuleInputs) -> np.ndarray:
    """h, unclipped."""
    return inputs.raw("entropy")
