"""One rank of the trainer: gradient steps and exact scores."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from actors.parking import Parking
from actors.process import peak_memory_bytes
from actors.trainer.batch import BatchError, MicroBatch, TeacherHead, build_micro_batch, check_items
from actors.trainer.engine import Engine
from actors.trainer.objective import Objective, no_scores, split_scores
from actors.trainer.tally import StepTally
from opd_ray.batching.micro_batches import width_of
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import LossSettings, StudentSettings, TrainerSettings
from opd_ray.errors import PeerFailure, RunError
from opd_ray.step_account import StepAccount
from opd_ray.types import HeadPart, RolloutScores, Signal, TrainItem, to_tensor


class TrainerError(RunError):
    """A step that must not be applied."""


class Trainer:
    """Every method but ``set_teacher_head`` is a collective: all ranks call it, in the same order.

    So is making one, which loads the student.

    Once it is made, nothing here draws random numbers: dropout is refused, so a checkpoint holds no
    generator state.

    Args:
        student: the student's weights and tokenizer.
        trainer: engine, optimizer and memory settings.
        loss: the divergence that is minimised.
        rank: of this process, from 0; each is one data-parallel rank.
        master: address and port of rank 0, where all ranks meet.
        vocab_size: rows of the output heads that stand for tokens; those beyond are padding.
        lagged: see :class:`actors.trainer.objective.Objective`.
        seed: of the run, from which an adapter begins.

    Attributes:
        engine: the student with its weights and checkpoints.

    Raises:
        ConfigError: see :func:`load_student` and :func:`check_student`.
    """

    def __init__(
        self,
        student: StudentSettings,
        trainer: TrainerSettings,
        loss: LossSettings,
        *,
        rank: int,
        master: tuple[str, int],
        vocab_size: int,
        lagged: bool = False,
        seed: int = 0,
    ) -> None:
        self._loss = loss
        self._objective = Objective(loss, vocab_size, lagged)
        self._rank = rank
        self._ranks = trainer.ranks
        self._vocab_size = vocab_size
        on_gpu = trainer.gpus_per_rank > 0
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._width = width_of(on_gpu=on_gpu, bfloat16=trainer.dtype is Dtype.bfloat16)
        self._teacher_heads: dict[str, tuple[TeacherHead, ...]] = {}
        self._heads_to_come: dict[str, Sequence[HeadPart]] = {}  # that came while it was asleep
        self._parked_heads = Parking(self._device)
        self.engine = Engine(
            student, trainer, rank=rank, master=master, device=self._device, seed=seed
        )
        self._tally = StepTally(self._device)

    def set_teacher_head(self, head: Sequence[HeadPart], teacher: str = "teacher") -> None:
        """Keep a teacher's output head, needed for the hidden signal; a later one replaces it.

        Args:
            head: one part, or one a member of an ensemble.
            teacher: its name in the run, which its signals carry.
        """
        if not self.engine.awake:
            self._heads_to_come[teacher] = head
            return
        self._teacher_heads[teacher] = tuple(
            TeacherHead(
                to_tensor(part.weight).to(self._device),
                None if part.bias is None else to_tensor(part.bias).to(self._device),
                part.share,
            )
            for part in head
        )

    def sleep(self, but_weights: bool = False) -> None:
        """Give memory back until :meth:`wake`: all of it, or all but what a push of weights reads.

        Asleep, a rank takes teachers' heads, and is otherwise not to be used.

        Raises:
            OSError: there is no room for what it holds.
        """
        if not self._parked_heads.taken:
            heads = [part for parts in self._teacher_heads.values() for part in parts]
            held = (tensor for head in heads for tensor in (head.weight_VD, head.bias_V))
            self._parked_heads.park(tensor for tensor in held if tensor is not None)
        self.engine.sleep(but_weights=but_weights)

    def wake(self, weights_alone: bool = False) -> None:
        """Have again what :meth:`sleep` gave back, or what a push of weights reads."""
        self.engine.wake(weights_alone=weights_alone)
        if weights_alone:
            return
        if self._parked_heads.taken:
            self._parked_heads.bring_back()
        while self._heads_to_come:
            teacher, head = self._heads_to_come.popitem()
            self.set_teacher_head(head, teacher)

    def accumulate(
        self, micro_batches: Sequence[Sequence[TrainItem]], *signal_maps: Mapping[str, Signal]
    ) -> None:
        """Add the gradients of one wave of rollouts to those of the step that comes next.

        The total weight of the step need not be known yet: :meth:`train_step` takes the rest of its
        rollouts and divides. A loss that is not finite is found there, too.

        Args:
            micro_batches: as for :meth:`train_step`.
            signal_maps: as for :meth:`train_step`.

        Raises:
            BatchError: see :func:`actors.trainer.batch.check_items`; nothing of the wave was added.
            PeerFailure: another rank raised this.
        """
        started = time.perf_counter()
        signals = ChainMap(*map(dict, signal_maps))
        self._agree(micro_batches, signals)
        self._add_gradients(micro_batches, signals, self._ranks, last=False)
        self._tally.seconds += time.perf_counter() - started

    def train_step(
        self,
        micro_batches: Sequence[Sequence[TrainItem]],
        total_weight: float,
        learning_rate: float,
        *signal_maps: Mapping[str, Signal],
    ) -> StepAccount:
        """One optimizer step on sum(weight x divergence) / ``total_weight`` over all ranks.

        The sum goes over the rollouts given here and those of all waves since the last step.

        Args:
            micro_batches: this rank's; as many on every rank, empty ones allowed.
            total_weight: of all kept tokens of all ranks, those of the waves included. 0: no rank
                steps.
            learning_rate: of this step.
            signal_maps: the teacher's signals by rollout id, in any number of pieces.

        Returns:
            This rank's account, of the waves too. The rollout engine's log-probabilities are at
            temperature 1, so at another temperature of the loss neither the gap nor the ratios are
            known: NaN.

        Raises:
            ValueError: ``total_weight`` is negative or not finite, or 0 after a wave with kept
                tokens.
            BatchError: see :func:`actors.trainer.batch.check_items`; the waves are kept.
            TrainerError: a loss or gradient is not finite; the weights are as before, but the
                engine must not be used any further.
            PeerFailure: another rank raised one of these.
        """
        if not 0 <= total_weight < math.inf:
            raise ValueError(f"total_weight must be finite and not negative, not {total_weight}")
        if total_weight == 0 and self._tally.kept_tokens:
            raise ValueError(
                f"total_weight is 0 after waves with {self._tally.kept_tokens} kept tokens"
            )
        started = time.perf_counter()
        grad_norm = 0.0
        if total_weight > 0:
            signals = ChainMap(*map(dict, signal_maps))
            self._agree(micro_batches, signals)
            # The gradients of waves are sums; where there was none, the loss itself is divided. The
            # engine averages over the ranks.
            if self._tally.is_empty:
                scale, divisor = self._ranks / total_weight, 1.0
            else:
                scale, divisor = self._ranks, total_weight
            # One micro-batch at least, which marks the step's end.
            self._add_gradients(micro_batches or [[]], signals, scale, last=True)
            grad_norm = self._optimizer_step(learning_rate, divisor)
        tally, self._tally = self._tally, StepTally(self._device)
        gap_sum = gap_max = log_ratio_sum = ratio_sum = ratio_square_sum = math.nan
        if self._loss.temperature == 1.0:
            gap_sum, gap_max = tally.gap()
            log_ratio_sum, ratio_sum, ratio_square_sum = tally.ratios()
        return StepAccount(
            loss_sum=tally.loss_sum,
            weight_sum=tally.weight_sum,
            kept_tokens=tally.kept_tokens,
            trunk_tokens=tally.trunk_tokens,
            padding_tokens=tally.padding_tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            gap_sum=gap_sum,
            gap_max=gap_max,
            skipped=total_weight == 0,
            seconds=tally.seconds + time.perf_counter() - started,
            log_ratio_sum=log_ratio_sum,
            ratio_sum=ratio_sum,
            ratio_square_sum=ratio_square_sum,
        )

    def score(
        self, micro_batches: Sequence[Sequence[TrainItem]], *signal_maps: Mapping[str, Signal]
    ) -> list[RolloutScores]:
        """Full-vocabulary scores of the items' rows, without gradients.

        Args:
            micro_batches: as for :meth:`train_step`.
            signal_maps: as for :meth:`train_step`; signals must give the whole distribution.

        Returns:
            One entry an item, in any order.

        Raises:
            BatchError: see :func:`actors.trainer.batch.check_items`.
        """
        signals = ChainMap(*map(dict, signal_maps))
        self._agree(micro_batches, signals)
        self.engine.student.eval()
        scores = []
        with torch.no_grad():
            for items in micro_batches:
                batch = self._batch(items, signals)
                if batch.is_empty:
                    self.engine.run(batch, None)
                else:
                    columns = self.engine.run(batch, partial(self._objective.scores, batch))
                    scores += split_scores(batch, columns)
                scores += [no_scores(item.rollout_id) for item in items if not len(item.rows)]
        return scores

    def peak_memory(self) -> int:
        """High-water mark in bytes: of the GPU's allocations, or of the process on the CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return peak_memory_bytes()

    def _batch(self, items: Sequence[TrainItem], signals: Mapping[str, Signal]) -> MicroBatch:
        return build_micro_batch(
            items,
            signals,
            vocab_size=self._vocab_size,
            heads=self._teacher_heads,
            device=self._device,
            width=self._width,
        )

    def _add_gradients(
        self,
        micro_batches: Sequence[Sequence[TrainItem]],
        signals: Mapping[str, Signal],
        scale: float,
        *,
        last: bool,
    ) -> None:
        """Add those of sum(weight x divergence) x ``scale``; ``last``: the step has no more."""
        self.engine.student.train()
        for number, items in enumerate(micro_batches, start=1):
            batch = self._batch(items, signals)
            loss, divergence_N, logprob_N = self.engine.run(
                batch, partial(self._objective.divergence, batch, scale)
            )
            self.engine.backward(loss, last=last and number == len(micro_batches))
            self._tally.add(batch, divergence_N, logprob_N)

    def _optimizer_step(self, learning_rate: float, divisor: float) -> float:
        """Apply the gradients of all ranks, divided; returns their global norm before clipping."""
        broken = self._tally.not_finite()
        if not self.engine.all_ranks(not broken):
            problem = f"rank {self._rank}: the divergence is NaN or infinite in rollouts"
            if broken:
                raise TrainerError(f"{problem} {broken}; no step was taken")
            raise PeerFailure(f"{problem} of another rank; no step was taken")
        norm = self.engine.step(learning_rate, divisor)
        if not math.isfinite(norm):
            raise TrainerError(
                f"rank {self._rank}: the gradient of rollouts {self._tally.rollout_ids} and those "
                f"of the other ranks has norm {norm}; no step was taken"
            )
        return norm

    def _agree(
        self, micro_batches: Sequence[Sequence[TrainItem]], signals: Mapping[str, Signal]
    ) -> None:
        """Check this rank's input; if any rank refuses its own, all raise and none waits alone."""
        try:
            for items in micro_batches:
                check_items(items, signals, vocab_size=self._vocab_size, heads=self._teacher_heads)
        except BatchError:
            self.engine.all_ranks(False)
            raise
        if not self.engine.all_ranks(True):
            raise PeerFailure(f"rank {self._rank}: another rank refused its rollouts")
