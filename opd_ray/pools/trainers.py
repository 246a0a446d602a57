"""The trainer ranks as one: the same call to every rank, their accounts added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from opd_ray.batching.micro_batches import plan_micro_batches, width_of
from opd_ray.checksums import FileSum
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings
from opd_ray.errors import ActorFailure, ActorLost, Asleep, DamagedCheckpoint, Unanswered
from opd_ray.output.checkpoint import sums_of_trainer
from opd_ray.pools.watch import ActorWatch, AnswerLimit
from opd_ray.step_account import StepAccount
from opd_ray.types import RolloutScores, TrainItem

# Of the rows by rollout id that each rank wants, references to their signals for each rank; a
# trainer resolves them itself.
SignalSource = Callable[[Sequence[Mapping[str, np.ndarray]]], Sequence[Sequence[ray.ObjectRef]]]


@dataclass
class TrainerGroup:
    """All trainer ranks. Every method is a collective: all ranks are called, all must answer.

    Raises:
        ActorLost: where ranks are called: one of them died, or does not answer in time. None of
            them is of any use then: see :meth:`replace_by`. So are they where one no longer reaches
            the others: the cause of an ActorFailure is a ConnectionLost.
    """

    watch: ActorWatch
    ranks: Sequence[tuple[str, Any]]  # (name, Ray actor handle) pairs
    settings: TrainerSettings
    # Of the kept tokens of all waves since the last step.
    _wave_weight: float = field(default=0.0, init=False)
    _asleep: bool = field(default=False, init=False)
    _weights_asleep: bool = field(default=False, init=False)

    def accumulate(self, items: Sequence[TrainItem], signals: SignalSource) -> None:
        """Add the gradients of the kept rows to those of the step that comes next.

        Rollouts that keep nothing are left out.
        """
        kept = [item for item in items if len(item.rows)]
        if not kept:
            return
        refs = [
            handle.call.remote("accumulate", micro_batches, *found)
            for handle, micro_batches, found in self._shares(kept, signals)
        ]
        self._gather(refs, "a wave of a training step")
        self._wave_weight += _weight_of(kept)

    def step(
        self, items: Sequence[TrainItem], learning_rate: float, signals: SignalSource
    ) -> StepAccount:
        """One optimizer step on the kept rows and those of all waves since the last step.

        Rollouts that keep nothing are left out.
        """
        kept = [item for item in items if len(item.rows)]
        total_weight = self._wave_weight + _weight_of(kept)
        refs = [
            handle.call.remote("train_step", micro_batches, total_weight, learning_rate, *found)
            for handle, micro_batches, found in self._shares(kept, signals)
        ]
        account = reduce(add, self._gather(refs, "a training step"))
        self._wave_weight = 0.0
        return account

    def score(self, items: Sequence[TrainItem], signals: SignalSource) -> list[RolloutScores]:
        """Exact scores of the rows of ``items``, in their order; of an item without rows, none."""
        asked = [item for item in items if len(item.rows)]
        refs = [
            handle.call.remote("score", micro_batches, *found)
            for handle, micro_batches, found in self._shares(asked, signals)
        ]
        scores_by_rollout = {
            scores.rollout_id: scores
            for answer in self._gather(refs, "exact scoring")
            for scores in answer
        }
        return [
            scores_by_rollout[item.rollout_id]
            if len(item.rows)
            else RolloutScores(item.rollout_id, {})
            for item in items
        ]

    def sleep(self, *, but_weights: bool = False) -> None:
        """Have all ranks give their memory back, or all of it but that of the weights."""
        self._asleep, self._weights_asleep = True, not but_weights
        self._call_all("sleep", but_weights)

    def lie_asleep(self) -> None:
        """All ranks are asleep already, as they were told to when they had loaded."""
        self._asleep = self._weights_asleep = True

    def wake(self, *, weights_alone: bool = False) -> None:
        """Have all ranks take it again, or that of the weights, which are then to be read."""
        self._call_all("wake", weights_alone)
        self._asleep, self._weights_asleep = weights_alone and self._asleep, False

    def weights(self) -> list[ray.ObjectRef]:
        """References to the chunks of the current weights, gathered from all ranks by rank 0."""
        self._at_hand("their weights", weights_alone=True)
        refs = [handle.weights.remote() for _, handle in self.ranks]
        return self._gather(refs, "gathering weights")[0]

    def call_transport(self, method: str, *args: Any) -> list[Any]:
        """Call every rank's end of the weight transport."""
        self._at_hand(f"weight transport, {method}", weights_alone=True)
        refs = [handle.call_transport.remote(method, *args) for _, handle in self.ranks]
        return self._gather(refs, f"weight transport, {method}")

    def set_teacher_head(self, head: ray.ObjectRef, teacher: str) -> None:
        """Give every rank a teacher's output head, which makes distributions of hidden states.

        Ranks that sleep take it too.
        """
        self._call_all("set_teacher_head", head, teacher)

    def replace_by(self, ranks: Sequence[tuple[str, Any]]) -> None:
        """Go on with new ranks, which are awake; what these have accumulated is gone."""
        self.ranks = ranks
        self._asleep = self._weights_asleep = False
        self._wave_weight = 0.0

    def save(self, folder: str) -> dict[str, FileSum]:
        """Write weights and optimizer of every rank into ``folder``; the sums of all files."""
        self._at_hand("a checkpoint")
        found: dict[str, FileSum] = {}
        for sums in self._call_all("engine.save", folder):
            found |= sums
        return found

    def begin_save(self, folder: str) -> list[tuple[ray.ObjectRef, str]]:
        """Write a copy of what the ranks hold now, while they go on.

        Returns:
            a reference to what each rank's :meth:`save` would give, and who gives it.
        """
        self._at_hand("a checkpoint")
        self._call_all("engine.snapshot")
        return [
            (handle.write_snapshot.remote(folder), f"{name} (writing a checkpoint)")
            for name, handle in self.ranks
        ]

    def have_room_to_copy(self) -> bool:
        """Whether such copies take at most half of the memory that is free on each machine."""
        self._at_hand("room for a checkpoint")
        needed: Counter[str] = Counter()
        free: dict[str, int] = {}
        for machine, copy, available in self._call_all("engine.room_for_snapshot"):
            needed[machine] += copy
            free[machine] = min(available, free.get(machine, available))
        return all(needed[machine] <= free[machine] // 2 for machine in free)

    def load(self, folder: str) -> None:
        """Read what :meth:`save` wrote, by any number of ranks.

        In a checkpoint every file is read once before anything changes, to see whether it is what
        was written; the ranks share this work.

        Raises:
            DamagedCheckpoint: it is not; nothing has changed.
        """
        self._at_hand("reading a checkpoint")
        sums = sums_of_trainer(Path(folder))
        if sums:
            shares = _shares_of_files(sums, len(self.ranks))
            refs = [
                handle.call.remote("engine.check_files", folder, share)
                for (_, handle), share in zip(self.ranks, shares, strict=True)
            ]
            try:
                self._gather(refs, "looking a checkpoint over")
            except ActorFailure as failure:
                if isinstance(failure.__cause__, DamagedCheckpoint):
                    raise DamagedCheckpoint(failure.cause) from failure
                raise
        self._call_all("engine.load", folder)

    def export(self, folder: str) -> None:
        """Write the student as a plain Hugging Face folder."""
        self._at_hand("an export")
        self._call_all("engine.export", folder)

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        refs = [handle.call.remote(method, *args) for _, handle in self.ranks]
        return self._gather(refs, method)

    def _gather(self, refs: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        return answers_of_ranks(self.watch, self.ranks, refs, what, answer_limit(self.settings))

    def _shares(
        self, items: Sequence[TrainItem], signals: SignalSource
    ) -> list[tuple[Any, list[list[TrainItem]], Sequence[ray.ObjectRef]]]:
        """Every rank's handle, micro-batches and signals; no rank begins before all have theirs."""
        texts = [item.text_ids for item in items]
        settings = self.settings
        width = width_of(
            on_gpu=settings.gpus_per_rank > 0, bfloat16=settings.dtype is Dtype.bfloat16
        )
        plan = plan_micro_batches(texts, len(self.ranks), settings.micro_batch_tokens, width)
        micro_batches = [[[items[i] for i in micro] for micro in rank] for rank in plan]
        wanted = [{items[i].rollout_id: items[i].rows for i in chain(*rank)} for rank in plan]
        found = signals(wanted)
        self._at_hand("training or scores")
        handles = [handle for _, handle in self.ranks]
        return list(zip(handles, micro_batches, found, strict=True))

    def _at_hand(self, what: str, *, weights_alone: bool = False) -> None:
        """
        Raises:
            Asleep: the ranks are, or their weights where these alone are needed.
        """
        if self._weights_asleep if weights_alone else self._asleep:
            raise Asleep("the trainer ranks", what)


def answer_limit(settings: TrainerSettings) -> AnswerLimit:
    """How long a rank may take for one call."""
    return AnswerLimit(settings.answer_timeout_s, "trainer.answer_timeout_s")


def answers_of_ranks(
    watch: ActorWatch,
    ranks: Sequence[tuple[str, Any]],
    refs: Sequence[ray.ObjectRef],
    what: str,
    limit: AnswerLimit,
    *,
    interruptible: bool = False,
) -> list[Any]:
    """What (name, handle) ``ranks`` answer to a call, which ``what`` names, in their order.

    Raises:
        ActorLost: a rank died, does not answer within ``limit``, or was to read what is lost with
            the node that held it: the others wait for it in vain.
        ActorFailure: a rank raised, or no longer reaches the others.
        StallError, Interrupted: see :meth:`ActorWatch.wait_until`.
    """
    owners = [f"{name} ({what})" for name, _ in ranks]
    try:
        return watch.get_all(
            zip(refs, owners, strict=True), interruptible=interruptible, limit=limit
        )
    except Unanswered as late:
        raise ActorLost(ranks[0][0], ", ".join(late.owners), late.what) from late
    except ActorFailure as failure:
        if isinstance(failure.__cause__, ObjectLostError):
            cause = "what it was to read is lost with the node that held it"
            raise ActorLost(ranks[0][0], failure.owner, cause) from failure
        raise


def _weight_of(items: Sequence[TrainItem]) -> float:
    return float(sum(item.weights.sum(dtype=np.float64) for item in items))


def _shares_of_files(sums: Mapping[str, FileSum], ranks: int) -> list[dict[str, FileSum]]:
    """Files for each rank, of about as many bytes: the largest first, to whom has least."""
    shares: list[dict[str, FileSum]] = [{} for _ in range(ranks)]
    loads = [0] * ranks
    for name, found in sorted(sums.items(), key=lambda item: -item[1].size):
        least = loads.index(min(loads))
        shares[least][name] = found
        loads[least] += found.size
    return shares
