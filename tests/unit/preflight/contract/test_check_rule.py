"""``opd-ray check-rule``: healthy rules pass, every broken promise is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.tip import rule_names

EXAMPLE = Path(__file__).parents[4] / "examples" / "custom_rule"
RULES = """
import numpy as np
from opd_ray.tip import selection_rule


def rule(needs, keeps="top"):
    return selection_rule(needs=needs, keeps=keeps)


@rule(("entropy",))
def random(inputs):
    return np.random.rand(len(inputs))


@rule(("entropy",))
def ordered(inputs):
    return inputs.raw("entropy") + np.arange(len(inputs))


@rule(("entropy",))
def writing(inputs):
    h = inputs.raw("entropy")
    h *= 2
    return h


@rule(("entropy",))
def short(inputs):
    return inputs.raw("entropy")[1:]


@rule(("entropy",))
def dividing(inputs):
    h = inputs.raw("entropy")
    with np.errstate(invalid="ignore", divide="ignore"):
        return (h - h.min()) / (h.max() - h.min())


@rule(("entropy",))
def undeclared(inputs):
    return inputs.raw("jsd")


@rule(("entropy", "jsd"))
def greedy(inputs):
    return inputs.raw("entropy")


@rule(("entropy", "position"))
def late(inputs):
    return np.where(inputs.raw("position") < 3, -np.inf, inputs.raw("entropy"))


@rule(("teacher_logprob",))
def negative(inputs):
    return inputs.raw("teacher_logprob")


@rule(("teacher_logprob",), keeps="sampled")
def drawn(inputs):
    return inputs.raw("teacher_logprob")


@rule(())
def dampened(inputs):
    return np.array([1.0, 0.5])[inputs.turns_M]


@rule(())
def short_turns(inputs):
    return -np.repeat(inputs.lengths_J, inputs.lengths_J)
"""


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rules_to_check.py").write_text(RULES)


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["check-rule", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("name", [*rule_names(), "surprise:surprise"])
def test_the_rules_that_are_here_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(capsys, name)
    assert code == 0, said
    assert f"the rule {name} can be used" in said


def test_what_the_example_needs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(capsys, "surprise:surprise") == (
        0,
        "rule surprise:surprise keeps top; it needs\n"
        "  rollout_logprob (nats): every rollout actor\n"
        "  teacher_logprob (nats): every teacher\n"
        "  position (tokens): always there\n"
        "the rule surprise:surprise can be used\n",
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random", ["gives other scores when it is asked twice"]),
        ("ordered", ["when the rollouts stand in another order"]),
        ("writing", ["read-only", "rules_to_check.py, line 23, in writing", "take .copy()"]),
        ("short", ["fails: rule rules_to_check:short gives scores of shape"]),
        ("dividing", ["fails of a batch of one token: rule", "a score of nan", "position 0"]),
        ("dividing", ["fails where all scores are equal: rule"]),
        ("undeclared", ["needs the score 'jsd', which this batch does not have"]),
        ("drawn", ["at least 0, or -inf"]),
        ("dampened", ["index 2 is out of bounds", "in dampened"]),  # of the third turn
    ],
)
def test_a_broken_promise_is_named(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = checked(capsys, f"rules_to_check:{name}")
    assert code == 1, said
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_a_rule_may_go_by_turns(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(capsys, "rules_to_check:short_turns", "tip.share_of=turn")
    assert code == 0, said


def test_what_stops_no_run_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(capsys, "rules_to_check:greedy")
    assert code == 0
    assert "note: declares that it needs jsd, which it did not read" in said
    code, said = checked(capsys, "rules_to_check:late")
    assert code == 0
    assert "note: left out " in said


def test_a_rule_is_tried_as_the_settings_would_use_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert checked(capsys, "rules_to_check:negative")[0] == 0
    code, said = checked(capsys, "rules_to_check:negative", "tip.selection=soft")
    assert code == 1
    assert "with tip.selection=soft scores are weights: none may be below 0" in said
    code, said = checked(capsys, "soft_or", "tip.divergence=jsd")
    assert "  entropy (nats; read as H / ln V): " in said
    assert "  jsd (nats): " in said
    assert code == 0
    (tmp_path / "run.yaml").write_text("inherit: demo\ntip: {divergence: forward_kl}\n")
    _, said = checked(capsys, "soft_or", "--config", str(tmp_path / "run.yaml"))
    assert "  forward_kl (nats): " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["soft"], "no rule is called 'soft'; did you mean 'soft_or'?"),
        (["no_such_module:x"], "'no_such_module:x' cannot be imported"),
        (["random", "tip.selection=threshold", "tip.threshold=1"], "rule random samples"),
        (["random", "tip.rhoo=1"], "tip.rhoo"),
    ],
)
def test_what_is_no_rule_is_bad_input(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = checked(capsys, *arguments)
    assert code == 2
    assert words in said
