"""A selection rule of one's own: tokens the student was sure of and the teacher finds unlikely."""

import numpy as np

from opd_ray.tip import RuleInputs, selection_rule


@selection_rule(needs=("rollout_logprob", "teacher_logprob", "position"), keeps="top")
def surprise(inputs: RuleInputs) -> np.ndarray:
    """log P - log Q of the sampled token, in nats, fading over the first 100 positions.

    The sampled token alone is enough, so that this works with a teacher behind a completion API.
    """
    gap_M = inputs.raw("rollout_logprob") - inputs.raw("teacher_logprob")
    return gap_M * np.exp(-inputs.raw("position") / 100)
