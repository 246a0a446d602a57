"""entropy_topk: the tokens of greatest student entropy, soft_or's ablation (arXiv 2604.14084)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("entropy",))
def score(inputs: RuleInputs) -> np.ndarray:
    """h, unclipped: clipping would only make ties."""
    return inputs.raw("entropy")
