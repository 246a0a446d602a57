"""The rule in examples/custom_rule works by its import path alone, as its README says."""

from pathlib import Path

import numpy as np
import pytest

from opd_ray.errors import ConfigError
from opd_ray.tip import MissingScoreError, RuleInputs, TipFilter, TipSettings, TokenScores
from opd_ray.tip.scores import SCORES

FOLDER = Path(__file__).parents[3] / "examples" / "custom_rule"
RULE = "surprise:surprise"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def batch(**changes):
    fields = {
        "rollout_logprob_N": [-1.0, -0.5, -0.1, -2.0, -0.2],
        "teacher_logprob_N": [-1.0, -3.0, -2.1, -0.5, -9.0],
    }
    return TokenScores(np.array([3, 2]), [1, 1, 1, 1, 0], 32, **(fields | changes))


def test_the_example_selects_by_its_score():
    # Gaps 0, 2.5, 2.0 | -1.5, and a tool token; the second and third of rollout 0 are the greatest.
    filter_ = TipFilter(TipSettings(rule=RULE, rho=0.67))
    weights_N = filter_.select(batch(), seeds_R=np.zeros(2, int), step=0).weights_N
    assert weights_N.tolist() == [0, 1, 1, 0, 0]


def test_the_example_fades_with_the_position():
    settings = TipSettings(rule=RULE, selection="threshold", threshold=2.48)
    weights_N = TipFilter(settings).select(batch(), np.zeros(2, int), 0).weights_N
    assert not weights_N.any()  # 2.5 nats at position 1 count as 2.475
    settings = TipSettings(rule=RULE, selection="threshold", threshold=2.47)
    assert TipFilter(settings).select(batch(), np.zeros(2, int), 0).weights_N.tolist() == [
        0,
        1,
        0,
        0,
        0,
    ]


def test_a_rule_of_ones_own_may_look_at_every_score():
    assert TipFilter(TipSettings(rule=RULE, overlap=False)).reads == set(SCORES)


def test_its_missing_score_is_named():
    with pytest.raises(
        MissingScoreError, match="surprise:surprise needs the score 'teacher_logprob'"
    ):
        TipFilter(TipSettings(rule=RULE)).select(batch(teacher_logprob_N=None), np.zeros(2, int), 0)


class EveryOther:
    """A rule may also be a class."""

    needs = ("position",)
    keeps = "bottom"

    def score(self, inputs: RuleInputs) -> np.ndarray:
        return inputs.raw("position") % 2


class Broken(EveryOther):
    def score(self, inputs: RuleInputs) -> np.ndarray:
        return np.full(len(inputs), np.nan)


class Short(EveryOther):
    def score(self, inputs: RuleInputs) -> np.ndarray:
        return np.zeros(len(inputs) - 1)


class Undecided(EveryOther):
    keeps = "middle"


class Misspelt(EveryOther):
    needs = ("entorpy",)


class OneText(EveryOther):
    needs = "entropy"


class TooGreat(EveryOther):
    def score(self, inputs: RuleInputs) -> np.ndarray:
        return np.full(len(inputs), 1e300)


def test_a_class_is_a_rule_too():
    filter_ = TipFilter(TipSettings(rule=f"{__name__}:EveryOther", rho=0.5))
    assert filter_.select(batch(), np.zeros(2, int), 0).weights_N.tolist() == [1, 0, 0, 0, 0]


def test_mistakes_in_a_rule_are_named():
    with pytest.raises(ConfigError, match=r"Broken gives a score of nan at rollout 0 of the batch"):
        TipFilter(TipSettings(rule=f"{__name__}:Broken")).select(batch(), np.zeros(2, int), 0)
    with pytest.raises(ConfigError, match=r"Short gives scores of shape \(3,\) for 4 tokens"):
        TipFilter(TipSettings(rule=f"{__name__}:Short")).select(batch(), np.zeros(2, int), 0)
    with pytest.raises(ValueError, match="keeps='middle' must be one of"):
        TipFilter(TipSettings(rule=f"{__name__}:Undecided"))
    with pytest.raises(ValueError, match="no score is called 'entorpy'"):
        TipFilter(TipSettings(rule=f"{__name__}:Misspelt"))
    with pytest.raises(ValueError, match=r"needs='entropy' is one text: .* \('entropy',\)$"):
        TipFilter(TipSettings(rule=f"{__name__}:OneText"))
    with pytest.raises(ConfigError, match=r"a score of 1e\+300 .* must be finite in float32"):
        TipFilter(TipSettings(rule=f"{__name__}:TooGreat")).select(batch(), np.zeros(2, int), 0)
