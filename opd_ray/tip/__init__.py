"""Token selection (TIP, arXiv 2604.14084): scores, rules and the filter. NumPy only."""

from opd_ray.tip.batch_scores import batch_scores, with_exact_scores
from opd_ray.tip.filter import Selection, TipFilter
from opd_ray.tip.registry import find_rule, rule_names
from opd_ray.tip.rule import Rule, RuleInputs, selection_rule
from opd_ray.tip.scores import MissingScoreError, TokenScores
from opd_ray.tip.settings import TipSettings
from opd_ray.tip.streamed import StreamedScores, streamed_scores

__all__ = [
    "MissingScoreError",
    "Rule",
    "RuleInputs",
    "Selection",
    "StreamedScores",
    "TipFilter",
    "TipSettings",
    "TokenScores",
    "batch_scores",
    "find_rule",
    "rule_names",
    "selection_rule",
    "streamed_scores",
    "with_exact_scores",
]
