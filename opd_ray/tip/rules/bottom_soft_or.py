"""bottom_soft_or: the tokens that soft_or values least, its negative control (arXiv 2604.14084)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule
from opd_ray.tip.rules.soft_or import score as soft_or


@selection_rule(needs=soft_or.needs, keeps="bottom")
def score(inputs: RuleInputs) -> np.ndarray:
    """The score of soft_or."""
    return soft_or.score(inputs)
