"""A trainer rank that waits as long as its texts would take to be read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import ray
from pipeline_profiles import Profile
from waiting_actor import WAITING_GROUPS, WaitingActor, drawn_columns, wait

from opd_ray.step_account import StepAccount
from opd_ray.types import RolloutScores, SampledSignal, TrainItem


@ray.remote(concurrency_groups={**WAITING_GROUPS, "rank": 1})
class WaitingTrainer(WaitingActor):
    """A trainer rank: every call takes what its own texts take it, a step the optimizer's time."""

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        super().__init__(profile, scale)
        self._waves: list[StepAccount] = []  # since the last step

    def address(self) -> tuple[str, int]:
        """Of a meeting that nobody holds."""
        return "localhost", 0

    @ray.method(concurrency_group="rank")
    def setup(self, master_address: str, master_port: int) -> None:
        """It is."""

    @ray.method(concurrency_group="rank")
    def call(self, method: str, *args: Any) -> Any:
        """One of the trainer's methods below."""
        calls = {
            "accumulate": self._accumulate,
            "train_step": self._train_step,
            "score": self._score,
        }
        return calls[method](*args)

    @ray.method(concurrency_group="rank")
    def weights(self) -> list[ray.ObjectRef]:
        """A reference to weights that weigh nothing: their way is the engines' to wait for."""
        return [ray.put(b"")]

    @ray.method(concurrency_group="rank")
    def call_transport(self, method: str, *args: Any) -> None:
        """Has no end of its own."""

    def _accumulate(
        self, micro_batches: list[list[TrainItem]], *found: Mapping[str, SampledSignal]
    ) -> None:
        self._waves.append(self._read(micro_batches, found, 0.0))

    def _train_step(
        self,
        micro_batches: list[list[TrainItem]],
        total_weight: float,
        learning_rate: float,
        *found: Mapping[str, SampledSignal],
    ) -> StepAccount:
        last = self._read(micro_batches, found, self._profile.optimizer_seconds)
        parts, self._waves = [*self._waves, last], []
        account = reduce(add, parts)
        assert account.weight_sum <= total_weight * (1 + 1e-6)
        return replace(
            account,
            learning_rate=learning_rate,
            grad_norm=1.0,
            seconds=sum(part.seconds for part in parts),
        )

    def _score(
        self, micro_batches: list[list[TrainItem]], *found: Mapping[str, SampledSignal]
    ) -> list[RolloutScores]:
        """Forward passes alone: a third of reading with the backward pass."""
        begin = time.monotonic()
        tokens = sum(trunk_tokens(items) for items in micro_batches) * self._scale
        wait(self._profile.reading_seconds(tokens, 1) / 3 / self._scale, begin)
        self._diary.busy.append((begin, time.monotonic()))
        return [
            RolloutScores(item.rollout_id, drawn_columns(item.rollout_id, len(item.rows)))
            for items in micro_batches
            for item in items
        ]

    def _read(
        self,
        micro_batches: list[list[TrainItem]],
        found: Iterable[Mapping[str, SampledSignal]],
        further_seconds: float,
    ) -> StepAccount:
        begin = time.monotonic()
        items = [item for micro_batch in micro_batches for item in micro_batch]
        signals = {name: len(signal.logprobs) for part in found for name, signal in part.items()}
        assert signals == {item.rollout_id: len(item.rows) for item in items}
        tokens = sum(trunk_tokens(micro_batch) for micro_batch in micro_batches)
        seconds = self._profile.reading_seconds(tokens * self._scale, 1) + further_seconds
        wait(seconds / self._scale, begin)
        self._diary.busy.append((begin, time.monotonic()))
        weight = float(sum(item.weights.sum() for item in items))
        return StepAccount(
            loss_sum=weight,
            weight_sum=weight,
            kept_tokens=sum(len(item.rows) for item in items),
            trunk_tokens=tokens,
            padding_tokens=0,
            grad_norm=0.0,
            learning_rate=0.0,
            gap_sum=0.0,
            gap_max=0.0,
            skipped=False,
            seconds=time.monotonic() - begin,
        )


def trunk_tokens(items: Sequence[TrainItem]) -> int:
    """What one row of these texts holds: a prompt once for all its responses."""
    prompts = {item.prompt_ids.tobytes(): len(item.prompt_ids) for item in items}
    responses = sum(len(item.text_ids) - len(item.prompt_ids) for item in items)
    return sum(prompts.values()) + responses
