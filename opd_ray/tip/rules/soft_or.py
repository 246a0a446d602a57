"""soft_or: where the student is unsure or disagrees with the teacher (TIP, arXiv 2604.14084)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("entropy", "divergence"))
def score(inputs: RuleInputs) -> np.ndarray:
    """h^ + d^ - h^ d^, the probabilistic OR of the normalised entropy and divergence."""
    h_M = inputs.normalised("entropy")
    d_M = inputs.normalised("divergence")
    return h_M + d_M - h_M * d_M
