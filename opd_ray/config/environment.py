"""The section ``environment`` of a configuration: the world that a student acts in by tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opd_ray.config.ranges import ABOVE_ZERO, at_least
from opd_ray.on_resume import FREE, TOLD


@dataclass
class EnvironmentSettings:
    # "package.module:object" of the environment's class, or of a function that makes one; null for
    # responses of a single turn.
    path: str | None = field(default=None, metadata=TOLD)
    # Keyword arguments of the class or function.
    arguments: dict[str, Any] = field(default_factory=dict, metadata=TOLD)
    # Format of the tool calls: hermes, llama3_json, qwen3_coder, or "package.module:Class".
    parser: str = field(default="hermes", metadata=TOLD)
    # Turns of the student in a rollout, at most.
    max_turns: int = field(default=16, metadata=at_least(1) | TOLD)
    # Tool calls of a rollout, at most.
    max_calls: int = field(default=64, metadata=at_least(0) | TOLD)
    # Longest turn of the student, tokens; null: as many as rollout.max_new_tokens leaves for it.
    max_turn_tokens: int | None = field(default=None, metadata=at_least(1) | TOLD)
    # Longest result of a tool, tokens; what is beyond is cut, and the result says so.
    max_result_tokens: int = field(default=1024, metadata=at_least(1) | TOLD)
    # Seconds that a tool, or any other method, may take. A call that takes longer is given up: the
    # student reads that it was.
    call_timeout_s: float = field(default=30.0, metadata=ABOVE_ZERO | TOLD)
    # Train on rollouts too that came to one of these limits; false leaves all their tokens out.
    keep_truncated: bool = field(default=True, metadata=TOLD)
    # Let the thinking of earlier turns stay where the chat template leaves it out, so that the
    # student is shown more than the template would; false refuses such templates.
    keep_thinking: bool = field(default=False, metadata=TOLD)
    # Rollouts that an engine has under way at once, in tools and writing; 0: twice
    # rollout.max_num_seqs.
    concurrent_rollouts: int = field(default=0, metadata=at_least(0) | FREE)
    # Threads of a rollout actor in which its environments run: calls at once. A call that is given
    # up for its time leaves its thread to itself and another takes its place; when four times this
    # number hang, the run ends.
    threads: int = field(default=64, metadata=at_least(1) | FREE)
    # Run every environment in a process of its own (a Ray actor), so that a tool that crashes or
    # hangs costs its own rollout's call alone; in a thread, a crash ends the run. For tools that
    # run code of the student's, use native libraries, change the working folder or compute for
    # long. There are as many processes as concurrent_rollouts, used by one rollout after another:
    # 16 are enough for most tools. Measured: 1.5 s to start one and 75 MB of memory of its own,
    # beside what the environment loads; 1 ms a call, where a thread takes 0.2 ms.
    own_process: bool = field(default=False, metadata=FREE)


@dataclass(frozen=True)
class EnvironmentSet:
    """The environments of a configuration in full."""

    default: EnvironmentSettings  # of sources that are not named
    by_source: Mapping[str, EnvironmentSettings]

    def of(self, source: str) -> tuple[str, EnvironmentSettings]:
        """The section that a source's prompts have, by its key."""
        if source in self.by_source:
            return f"environments.{source}", self.by_source[source]
        return "environment", self.default

    def concurrent(self, max_num_seqs: int) -> int:
        """Rollouts that an engine, which writes ``max_num_seqs`` at once, has under way at once."""
        if not self.any:
            return max_num_seqs
        return self.default.concurrent_rollouts or 2 * max_num_seqs

    @property
    def any(self) -> bool:
        """Whether any prompt may have one."""
        return any(s.path is not None for s in self._all)

    @property
    def own_processes(self) -> bool:
        """Whether any runs in processes of its own."""
        return any(s.path is not None and s.own_process for s in self._all)

    @property
    def _all(self) -> tuple[EnvironmentSettings, ...]:
        return self.default, *self.by_source.values()
