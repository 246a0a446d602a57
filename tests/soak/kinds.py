"""The kinds of run that are tried beyond the suite: small, real, and bit-equal every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SMALL = ("cluster.num_cpus=2", "rollout.actors=2", "rollout.max_num_seqs=8")
_TRAINING = (
    "run.deterministic=true",
    "run.resume=auto",
    # More than each engine runs at once, so that it matters who is given what, and when.
    "rollout.prompts_per_step=32",
    "teacher.replicas=2",
    "trainer.ranks=2",
    "rollout.max_restarts=10",
    "teacher.max_restarts=10",
    "trainer.max_restarts=10",
    "eval.kl_prompts=16",
    "eval.teacher_accuracy=false",
)


@dataclass(frozen=True)
class Kind:
    """What is run."""

    config: str  # a packaged one
    own: tuple[str, ...] = ()  # in which it differs from the others
    evaluates: bool = False  # ``opd-ray eval``, which trains nothing and starts nothing again

    @property
    def settings(self) -> tuple[str, ...]:
        """What is changed of the configuration."""
        return (*_SMALL, *(() if self.evaluates else _TRAINING), *self.own)

    @property
    def roles(self) -> tuple[str, ...]:
        """Whose processes there are."""
        if self.evaluates:
            return ("rollout", "raylet", "evaluation")
        return ("rollout", "teacher", "trainer", "raylet", "driver")

    def command(self, program: Sequence[str], output: Path, settings: Sequence[str]) -> list[str]:
        """The command line of a run into a folder.

        Args:
            program: that trains; not used by an evaluation.
            output: where to.
            settings: beyond those of the kind.
        """
        if self.evaluates:
            start = ["opd-ray", "eval", "--config", self.config, "--out", str(output)]
            return [*start, "--samples", "48", *self.settings]
        return [*program, self.config, f"run.output_dir={output}", *self.settings, *settings]


_BFLOAT16 = ("trainer.dtype=bfloat16", "rollout.dtype=bfloat16", "teacher.dtype=bfloat16")
KINDS = {
    "plain": Kind("demo"),
    "zero1": Kind("demo", ("trainer.zero_stage=1",)),
    "zero2": Kind("demo", ("trainer.zero_stage=2",)),
    "zero3": Kind("demo", ("trainer.zero_stage=3",)),
    "bfloat16": Kind("demo", (*_BFLOAT16, "trainer.zero_stage=2")),
    # Waves of a quarter of a step.
    "overlap": Kind(
        "demo",
        ("run.overlap=true", "tip.normalise_over=rollout", "trainer.micro_batch_tokens=192"),
    ),
    "lag": Kind("demo", ("run.lag=1",)),
    "rescore": Kind("demo", ("run.lag=1", "tip.rescore=true")),
    "tools": Kind("demo_tools"),
    "eval": Kind("demo", evaluates=True),
}
