"""The rollouts of every step: asked for, scored, and begun a step ahead where the run lags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_ray.config.schema import Config
from opd_ray.coordinator.session import Session
from opd_ray.data.prompts import Prompt, PromptFeed, own_teacher_prompts
from opd_ray.output.checkpoint import CONFIG
from opd_ray.output.resume import writes_otherwise
from opd_ray.output.rollouts_ahead import read_rollouts, write_rollouts
from opd_ray.pools.rollouts import run_sampling
from opd_ray.pools.scorer import BatchUnderWay
from opd_ray.seeds import derive_seed
from opd_ray.types import Rollout, RolloutRequest


@dataclass
class RolloutBatches:
    """One batch a step: its prompts, each answered ``samples_per_prompt`` times and judged."""

    config: Config
    session: Session
    prompts: PromptFeed
    # Which rollouts of a step a person will see token by token.
    close_ups: Callable[[int, Sequence[RolloutRequest]], Collection[str]]
    _ahead: BatchUnderWay | None = None  # of the step that comes next

    @property
    def begun_ahead(self) -> bool:
        """Whether the rollouts of the step that comes next are being written, or are there."""
        return self._ahead is not None

    def of(self, step: int) -> BatchUnderWay:
        """The step's, begun now unless it was begun ahead."""
        batch, self._ahead = self._ahead, None
        return batch or self._begin(step)

    def begin_ahead(self, step: int) -> None:
        """Have the step's rollouts written while the one before it is trained on."""
        self._ahead = self._begin(step)

    def finish_ahead(self) -> None:
        """Wait until what was begun ahead is there: only then may the engines' weights change.

        A stop that was requested does not end this wait. What was written with weights that are
        gone by now could not be written again.
        """
        if self._ahead is not None:
            self._ahead.wait(interruptible=False)

    def save(self, folder: Path, *, last: bool) -> bool:
        """Write what was begun ahead, if anything was, below ``folder``.

        Not where a rollout actor has died and taken top-Ks along: a run that goes on from there
        then writes the step's rollouts anew, with newer weights.

        Args:
            folder: where to.
            last: this is the run's last checkpoint, or that of its stop.

        Returns:
            False where a deterministic run does better without this checkpoint: one that goes on
            from an older one ends with the same bits.
        """
        if self._ahead is None:
            return True
        self._ahead.wait(interruptible=False)
        if write_rollouts(folder, self._ahead.rollouts()):
            return True
        lost = "the rollouts of the next step, of which a rollout actor that died has written some"
        deterministic = self.config.run.deterministic
        if deterministic and not last:
            print(
                f"opd-ray: no checkpoint is written now, as it would be without {lost}, and a run "
                "that goes on from it would end with other bits (run.deterministic = true)",
                file=sys.stderr,
            )
            return False
        print(
            f"opd-ray: this checkpoint does without {lost}; a run that goes on from it writes them "
            f"anew{', and ends with other bits' if deterministic else ''}",
            file=sys.stderr,
        )
        return True

    def forget(self) -> None:
        """Leave what was begun ahead: nobody writes or scores it any more."""
        self._ahead = None

    def load(self, folder: Path, step: int) -> bool:
        """Go on with what :meth:`save` wrote before ``step``; it is scored again.

        Args:
            folder: of a checkpoint, into which it was written.
            step: that comes next.

        Returns:
            False where the configuration now asks for other prompts or samples, has them written
            in another way, or asks for rollouts of the current weights: the step's rollouts are
            then written anew.
        """
        rollouts = read_rollouts(folder)
        if not rollouts:
            return True
        if not self.config.run.lag or writes_otherwise(self.config, folder.parent / CONFIG):
            return False
        prompts = self._prompts(step)
        requests = self._requests(step, prompts)
        if _ids(requests) != _ids(rollouts):
            return False
        self._ahead = self.session.scorer.start_written(
            requests,
            rollouts,
            own_teacher_prompts(prompts),
            self._drops,
            self.close_ups(step, requests),
        )
        self.finish_ahead()
        return True

    def _begin(self, step: int) -> BatchUnderWay:
        prompts = self._prompts(step)
        requests = self._requests(step, prompts)
        return self.session.scorer.start(
            requests,
            run_sampling(self.config.rollout),
            own_teacher_prompts(prompts),
            self._drops,
            self.close_ups(step, requests),
        )

    def _prompts(self, step: int) -> list[Prompt]:
        return self.prompts.batch(step, self.config.rollout.prompts_per_step)

    def _requests(self, step: int, prompts: list[Prompt]) -> list[RolloutRequest]:
        return [
            prompt.request(
                f"{step}/{prompt.key}/{sample}",
                sample,
                derive_seed(self.config.run.seed, step, prompt.key, sample),
            )
            for prompt in prompts
            for sample in range(self.config.rollout.samples_per_prompt)
        ]

    def _drops(self, request: RolloutRequest, rollout: Rollout) -> bool:
        """Whether a rollout in an environment is left out because it came to a limit."""
        if request.episode is None or rollout.finish_reason == "stop":
            return False
        return not self.config.environment_of(request.source).keep_truncated


def _ids(named: list[RolloutRequest] | list[Rollout]) -> list[str]:
    return [one.rollout_id for one in named]
