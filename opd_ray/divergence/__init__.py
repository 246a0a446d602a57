"""Divergences between student and teacher: the fused loss with its gradients, and exact scores."""

from opd_ray.divergence.exact import ExactScores, exact_scores
from opd_ray.divergence.fused_pass import DivergenceOutput
from opd_ray.divergence.kernels import LOGPROB_FLOOR
from opd_ray.divergence.linear import linear_divergence
from opd_ray.divergence.target import (
    HiddenTarget,
    LogitsTarget,
    MixtureTarget,
    SampledTarget,
    Target,
    TopKTarget,
)
from opd_ray.divergence.topk_tail import MIN_TAIL_MASS

__all__ = [
    "LOGPROB_FLOOR",
    "MIN_TAIL_MASS",
    "DivergenceOutput",
    "ExactScores",
    "HiddenTarget",
    "LogitsTarget",
    "MixtureTarget",
    "SampledTarget",
    "Target",
    "TopKTarget",
    "exact_scores",
    "linear_divergence",
]
