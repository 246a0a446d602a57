"""Text environments of SkyRL-Gym (``skyrl_gym.envs.base_text_env``) as environments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from opd_ray.environments.environment import Message, ToolSchema
from opd_ray.import_path import load_object


class SkyRLText:
    """A ``BaseTextEnv``: it answers every turn with messages, and has no tools that we know of.

    The student's tokens stay as they were sampled: ``postprocessed_action`` is not read.

    Args:
        env: "package.module:Class", or the name under which it is registered.
        config: its ``env_config``.
        max_turns: the ``max_turns`` of its extras; null leaves it out.
    """

    tools: Sequence[ToolSchema] = ()

    def __init__(
        self, env: str, config: Mapping[str, Any] | None = None, max_turns: int | None = None
    ) -> None:
        self._name, self._config = env, OmegaConf.create(dict(config or {}))
        self._extras = {} if max_turns is None else {"max_turns": max_turns}
        self._reward = 0.0
        self._env: Any = None

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Make the environment of the row's other columns; its first messages."""
        columns = {name: value for name, value in row.items() if name != "prompt"}
        given = {"env_config": self._config, "extras": {**columns, **self._extras}}
        if ":" in self._name:
            self._env = load_object(self._name, "env")(**given)
        else:
            self._env = importlib.import_module("skyrl_gym").make(self._name, **given)
        messages, _ = self._env.init(list(row["prompt"]))
        return list(messages)

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        """Never called, as there are no tools."""
        raise ValueError(f"there is no tool {name!r}")

    def respond(self, text: str) -> list[Message] | None:
        """What the environment observes; None once it is done."""
        step = self._env.step(text)
        self._reward += float(step["reward"])
        return None if step["done"] else list(step["observations"]) or None

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """The sum of its rewards, and its metrics that are numbers."""
        metrics = self._env.get_metrics()
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        return numbers | {"reward": self._reward}

    def close(self) -> None:
        """Close it."""
        if self._env is not None:
            self._env.close()
