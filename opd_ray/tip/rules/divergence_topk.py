"""divergence_topk: the tokens of greatest divergence (reverse, forward or JSD, by the settings)."""

import numpy as np

from opd_ray.tip.rule import RuleInputs, selection_rule


@selection_rule(needs=("divergence",))
def score(inputs: RuleInputs) -> np.ndarray:
    """The divergence in nats, unclipped: clipping would only make ties."""
    return inputs.raw("divergence")
