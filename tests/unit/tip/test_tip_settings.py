"""Settings of the filter: what is refused, and how they are written."""

import json
from dataclasses import asdict, dataclass, field

import pytest
from omegaconf import OmegaConf
from tip_batches import SEEDS, batch

from opd_ray.errors import ConfigError
from opd_ray.tip import TipFilter, TipSettings, find_rule
from opd_ray.tip.scores import SCORES
from opd_ray.tip.select import SelectBy, ShareOf
from opd_ray.types import Divergence


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": 1.2}, r"tip.rho=1.2 must lie in \[0, 1\]"),
        ({"rho": float("nan")}, "tip.rho=nan"),
        ({"rho_schedule": "linear"}, "needs tip.rho_end"),
        ({"rho_schedule": "cosine", "rho_end": 0.1}, "tip.rho_schedule_steps=0"),
        ({"selection": "threshold"}, "give a threshold"),
        ({"threshold": 0.5}, "give a threshold"),
        ({"divergence": "kl"}, "tip.divergence='kl' must be one of reverse_kl, forward_kl, jsd"),
        ({"selection": "tresh"}, "tip.selection='tresh' must be .*; did you mean 'threshold'"),
        ({"quadrant_cut": 3}, "tip.quadrant_cut=3 must be one of quantile, value$"),
        ({"normalise_over": "token"}, "tip.normalise_over='token'"),
        ({"h_clip": 98}, "tip.h_clip=98"),
        ({"alpha": -1.0}, "tip.alpha=-1.0"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TipSettings(**fields)


def test_a_loss_without_a_score_is_no_divergence_of_the_filter(monkeypatch):
    monkeypatch.delitem(SCORES, "jsd")
    with pytest.raises(ValueError, match=r"tip.divergence=jsd .* one of reverse_kl, forward_kl$"):
        TipSettings(divergence="jsd")


def test_choices_are_members_in_memory_and_plain_text_on_disk():
    settings = TipSettings(selection="soft", share_of="batch", divergence="jsd")
    assert settings.selection is SelectBy.soft
    assert settings.share_of is ShareOf.batch
    assert settings.divergence is Divergence.jsd
    text = json.dumps(asdict(settings))
    assert '"selection": "soft", "share_of": "batch"' in text
    assert json.loads(text) == asdict(settings)
    assert "selection: soft\nshare_of: batch\n" in OmegaConf.to_yaml(OmegaConf.structured(settings))
    # The state of a stream names the score, not the member.
    tip_filter = TipFilter(TipSettings(normalise_over="stream", divergence="jsd", overlap=False))
    tip_filter.select(batch(), SEEDS, 0)
    assert {type(name) for name in tip_filter.state_dict()["current"]} == {str}


def test_rules_that_do_not_go_with_a_selection():
    with pytest.raises(ValueError, match="random samples, so no threshold applies"):
        TipFilter(TipSettings(rule="random", selection="threshold", threshold=0.5))
    with pytest.raises(ValueError, match="bottom_soft_or keeps the least scores"):
        TipFilter(TipSettings(rule="bottom_soft_or", selection="soft"))


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="choose one of all, bottom_soft_or"):
        find_rule("nothing")
    with pytest.raises(ValueError, match="'soft_ro'; did you mean 'soft_or'"):
        TipFilter(TipSettings(rule="soft_ro"))
    with pytest.raises(ValueError, match="'math:pi' is no rule"):
        find_rule("math:pi")
    with pytest.raises(ConfigError, match="tip.rule = 'no_such_module:rule' cannot be imported"):
        find_rule("no_such_module:rule")


def test_settings_are_a_section_of_a_structured_config():
    @dataclass
    class Config:
        tip: TipSettings = field(default_factory=TipSettings)

    changed = OmegaConf.merge(OmegaConf.structured(Config), {"tip": {"rule": "random", "rho": 0.1}})
    settings = OmegaConf.to_object(changed).tip
    assert asdict(settings) == asdict(TipSettings(rule="random", rho=0.1))
