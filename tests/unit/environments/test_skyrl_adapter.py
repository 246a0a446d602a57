"""SkyRL-Gym's text environments as environments: with a stand-in, and with the package's own.

``pip install skyrl-gym`` in an environment of its own, with pytest, pytest-timeout and pyyaml.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from opd_ray.environments.adapters.skyrl import SkyRLText
from opd_ray.environments.environment import Environment, Responds

_INSTALL = "compares with the package itself: pip install skyrl-gym==0.4.0"
ROW = {
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "reward_spec": {"ground_truth": "2"},
    "rollout_seed": 7,
}
AGAIN = {"role": "user", "content": "Again."}


class Guess:
    """Shaped like ``BaseTextEnv``: the constructor, init, step, get_metrics and close."""

    closed = 0

    def __init__(self, env_config: Any, extras: dict[str, Any]) -> None:
        self.config, self.extras, self.turns = env_config, extras, 0

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [{"role": "system", "content": self.config.rules}, *prompt], {"note": 1}

    def step(self, action: str) -> dict[str, Any]:
        self.turns += 1
        right = action == self.extras["reward_spec"]["ground_truth"]
        done = right or self.turns >= self.extras["max_turns"]
        return {
            "observations": [AGAIN],
            "reward": 1.0 if right else -0.25,
            "done": done,
            "metadata": {},
            "postprocessed_action": None,
        }

    def get_metrics(self) -> dict[str, Any]:
        return {"steps": self.turns, "kind": "guess"}

    def close(self) -> None:
        Guess.closed += 1


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = type(sys)("guessing")
    made.Guess = Guess
    monkeypatch.setitem(sys.modules, "guessing", made)


def test_a_rollout() -> None:
    made = SkyRLText("guessing:Guess", config={"rules": "Guess."}, max_turns=3)
    assert isinstance(made, Environment)
    assert isinstance(made, Responds)
    assert list(made.tools) == []
    assert made.reset(ROW) == [{"role": "system", "content": "Guess."}, *ROW["prompt"]]
    extras = {"reward_spec": {"ground_truth": "2"}, "rollout_seed": 7, "max_turns": 3}
    assert made._env.extras == extras
    assert made.respond("3") == [AGAIN]
    assert made.respond("2") is None
    assert made.verify([]) == {"steps": 2.0, "reward": 0.75}
    before = Guess.closed
    made.close()
    assert Guess.closed == before + 1


def test_closing_before_the_first_row() -> None:
    before = Guess.closed
    SkyRLText("guessing:Guess").close()
    assert Guess.closed == before


def test_an_environment_of_the_package() -> None:
    pytest.importorskip("skyrl_gym", reason=_INSTALL)
    made = SkyRLText("gsm8k_multi_turn", max_turns=3)
    assert made.reset(ROW) == ROW["prompt"]
    (first,) = made.respond("I think so.") or []
    assert first["role"] == "user"
    assert "step-by-step reasoning" in first["content"]
    (second,) = made.respond("#### 5") or []
    assert "only the final numeric answer" in second["content"]
    assert made.respond("#### 2") is None
    # A wrong answer in the right form gives 0.2 / 3, the right one 1.
    figures = made.verify([])
    assert figures["steps"] == 3.0
    assert figures["reward"] == pytest.approx(1 + 0.2 / 3)
    made.close()


def test_an_environment_of_the_package_by_its_path() -> None:
    pytest.importorskip("skyrl_gym", reason=_INSTALL)
    made = SkyRLText("skyrl_gym.envs.gsm8k.env:GSM8kEnv")
    made.reset(ROW)
    assert made.respond("#### 2") is None
    assert made.verify([]) == {"reward": 1.0}


def test_one_that_calls_its_own_tools() -> None:
    """What a user of the package subclasses: a tool group, called by tags in the text."""
    base = pytest.importorskip("skyrl_gym.envs.base_text_env", reason=_INSTALL)
    core = pytest.importorskip("skyrl_gym.tools.core", reason=_INSTALL)

    class Sums(core.ToolGroup):
        def __init__(self) -> None:
            super().__init__(name="Sums")

        @core.tool
        def add(self, a: str, b: str) -> str:
            return str(int(a) + int(b))

    class Adding(base.BaseTextEnv):
        def __init__(self, env_config: Any, extras: dict[str, Any]) -> None:
            super().__init__()
            self.init_tool_groups([Sums()])

        def step(self, action: str) -> Any:
            found = self._execute_tool("Sums", "add", action.split("+"))
            observed = [{"role": "user", "content": found}]
            return base.BaseTextEnvStepOutput(
                observations=observed, reward=0.0, done=False, metadata={}
            )

    sys.modules["guessing"].Adding = Adding
    made = SkyRLText("guessing:Adding")
    assert made.reset(ROW) == ROW["prompt"]
    assert made.respond("19+23") == [{"role": "user", "content": "42"}]
    assert made.verify([]) == {"reward": 0.0}
