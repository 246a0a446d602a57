"""teachability: disagreement that lies within the student's reach (TA-OPD, arXiv 2605.26844)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("union_forward_kl", "teacher_mass"))
def score(inputs: RuleInputs) -> np.ndarray:
    """D~ C~: forward KL on the union of top-Ks, and teacher mass on the student's top-K."""
    d_M = inputs.normalised("union_forward_kl", method="q05_q95")
    c_M = inputs.normalised("teacher_mass", method="q05_q95")
    return d_M * c_M
