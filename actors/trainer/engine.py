"""DeepSpeed around the student; what differs between ZeRO stages is here and in fragments.py."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.parking import Parking, tensors_within
from actors.process import free_memory_bytes
from actors.trainer.adapter import adapter_config, adapter_weights, merged_weights
from actors.trainer.batch import MicroBatch
from actors.trainer.checkpoint import (
    RANK_FILES,
    Entry,
    Snapshot,
    TrainerCheckpoint,
    entries_of,
    load,
    write_entries,
    write_layout,
)
from actors.trainer.fragments import Partition
from actors.trainer.meeting import meet
from actors.trainer.student import (
    HeadFunction,
    check_student,
    load_student,
    load_student_config,
    save_student,
    saved_names,
    student_files,
)
from actors.weights.adapter_folder import save_adapter
from actors.weights.chunks import named_weights, stored_weights
from opd_ray.borders import writing
from opd_ray.checksums import FileSum, files_below, first_difference, sum_of
from opd_ray.config.choices import Dtype, LoraForm
from opd_ray.config.schema import StudentSettings
from opd_ray.config.trainer import TrainerSettings, effective_zero_stage
from opd_ray.errors import DamagedCheckpoint

# What the student's folder holds beside its weights: a checkpoint outlives that folder.
STUDENT_FILES = "student"


class Engine:
    """The student and its optimizer on one rank; every method, and the making, is a collective.

    Args:
        student: where the weights are.
        settings: of engine, optimizer and memory.
        rank: of this process.
        master: address and port of rank 0, where all ranks meet.
        device: of this process.
        seed: of the run.

    Raises:
        ConfigError: see :func:`load_student` and :func:`check_student`.
    """

    def __init__(
        self,
        student: StudentSettings,
        settings: TrainerSettings,
        *,
        rank: int,
        master: tuple[str, int],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        meet(rank, settings.ranks, master, device)
        import deepspeed

        self._rank = rank
        self._device = device
        self._student = student
        self._named = merged_weights if student.lora.on else named_weights
        # As they were when the run began: the folder may be gone when it ends.
        self._files = student_files(student) if rank == 0 else None
        self._zero_stage = effective_zero_stage(settings)
        self._layout = {
            "ranks": settings.ranks,
            "zero_stage": self._zero_stage,
            "dtype": settings.dtype.value,
        }
        dtype = torch.bfloat16 if settings.dtype == Dtype.bfloat16 else torch.float32
        config = engine_config(
            settings,
            hidden_size=load_student_config(student).hidden_size,
            on_gpu=device.type == "cuda",
        )
        self.student = load_student(
            student,
            dtype,
            gradient_checkpointing=settings.gradient_checkpointing,
            recomputed_layers=settings.recomputed_layers,
            zero3_config=config if self._zero_stage == 3 else None,
            seed=seed,
        )
        self._engine, *_ = deepspeed.initialize(
            model=self.student,
            model_parameters=[p for p in self.student.parameters() if p.requires_grad],
            config=config,
            dist_init_required=False,
        )
        self._partition = Partition(
            self._engine,
            self.student.model,
            zero_stage=self._zero_stage,
            rank=rank,
            ranks=settings.ranks,
        )
        self._snapshot: tuple[Snapshot, Mapping[str, int]] | None = None
        self._parked_weights, self._parked_rest = Parking(device), Parking(device)
        check_student(self._engine, device, self.student.model.config.vocab_size, dtype)

    def sleep(self, but_weights: bool = False) -> None:
        """Give memory back, of everything or of all but the weights; asleep already, do nothing."""
        if not self._parked_rest.taken:
            self._partition.settle()
            own = {weight.untyped_storage().data_ptr() for weight in self._weights()}
            held = tensors_within(self._engine.optimizer, list(self.student.parameters()))
            self._parked_rest.park(t for t in held if t.untyped_storage().data_ptr() not in own)
        if not (but_weights or self._parked_weights.taken):
            self._parked_weights.park(self._weights())

    def wake(self, weights_alone: bool = False) -> None:
        """Have again what :meth:`sleep` gave back, or the weights of it, to be read."""
        if self._parked_weights.taken:
            self._parked_weights.bring_back()
        if self._parked_rest.taken and not weights_alone:
            self._parked_rest.bring_back()

    @property
    def awake(self) -> bool:
        """Whether everything is at hand."""
        return not (self._parked_weights.taken or self._parked_rest.taken)

    @property
    def weights_awake(self) -> bool:
        """Whether the weights are."""
        return not self._parked_weights.taken

    def all_ranks(self, yes: bool) -> bool:
        """Whether every rank says yes."""
        answer = torch.tensor(int(yes), device=self._device)
        dist.all_reduce(answer, op=dist.ReduceOp.MIN)
        return bool(answer)

    def run(self, batch: MicroBatch, function: HeadFunction | None) -> Any:
        """What the head makes of a micro-batch's kept rows (see :meth:`Student.forward`)."""
        return self._engine(
            batch.ids_1T,
            batch.positions_1T,
            segments=batch.segments,
            kept_N=batch.kept_N,
            function=function,
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``, averaged over the ranks, to that of this step.

        Args:
            loss: of one micro-batch.
            last: of the step. DeepSpeed's own count of micro-batches is fixed, so it is told.
        """
        # Stages 1 to 3 read the mark in their gradient hooks: it must be there before the pass.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float, divisor: float = 1.0) -> float:
        """Divide the gradients of this step by ``divisor``, clip them, and apply them.

        If their norm is not finite, the weights stay as they are.

        Returns:
            The global norm of the divided gradients before clipping.
        """
        optimizer = self._engine.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero_stage > 0:
            with _divided(optimizer, divisor):
                # DeepSpeed skips a step whose gradient overflows and calls its norm infinite.
                self._engine.step()
            return float(self._engine.get_global_grad_norm())
        # Without ZeRO it neither checks the norm nor keeps it, and clips in place.
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        if divisor != 1.0:
            for gradient in gradients:
                gradient.div_(divisor)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._engine.step()
        return norm

    def weights(self, *, on_every_rank: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole, as a rollout engine reads them (see :func:`stored_weights`).

        An adapter is added to those that it is for. Every rank must ask for all of them; with
        ZeRO-3, ranks other than 0 get empty tensors unless they are to have them whole too.
        """
        whole = partial(self._whole, on_every_rank=on_every_rank)
        return stored_weights(self.student.model, whole, self._named)

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """Those of the adapter, by peft's names; every rank must ask for all of them."""
        return adapter_weights(self.student.model, self._whole)

    def save(self, folder: str) -> dict[str, FileSum]:
        """Write this rank's part of weights and optimizer into ``folder``, from where they are.

        Returns:
            the sums of what it wrote, and on rank 0 of all that others wrote there before.

        Raises:
            WriteError: it cannot be written.
        """
        return self._write(folder, self._entries(), self._partition.steps())

    def snapshot(self) -> None:
        """Copy this rank's part into host memory, for :meth:`write_snapshot`."""
        self._snapshot = Snapshot(self._entries()), self._partition.steps()

    def room_for_snapshot(self) -> tuple[str, int, int]:
        """The machine's name, bytes that a snapshot takes, and bytes that it has free now."""
        needed = sum(entry.nbytes for entry in self._entries())
        return socket.gethostname(), needed, free_memory_bytes()

    def write_snapshot(self, folder: str) -> dict[str, FileSum]:
        """As :meth:`save`, of the last snapshot; may run beside a training step."""
        taken, self._snapshot = self._snapshot, None
        if taken is None:
            raise RuntimeError("write_snapshot() without a snapshot()")
        copy, steps = taken
        return self._write(folder, copy.entries, steps)

    def load(self, folder: str) -> None:
        """Read what the ranks of any engine wrote, whatever their number, stage and format.

        The optimizer's settings (decay, betas, clipping) stay those of this engine.

        Raises:
            CheckpointMismatch: there is no such checkpoint, it is not whole, or of another model.
        """
        load(TrainerCheckpoint(Path(folder)), self._partition, self._buffers())

    def check_files(self, folder: str, sums: Mapping[str, FileSum]) -> None:
        """Refuse files that are not what was written; not a collective.

        Raises:
            DamagedCheckpoint: names the first of them.
        """
        if difference := first_difference(Path(folder), sums):
            raise DamagedCheckpoint(
                f"the trainer's checkpoint in {folder} is not whole: {difference}; use an older one"
            )

    def export(self, folder: str) -> None:
        """Write the student as a Hugging Face folder (see :func:`save_student`), or its adapter."""
        self._partition.settle()
        model, lora = self.student.model, self._student.lora
        if lora.on and lora.export is LoraForm.adapter:
            adapter = {name: tensor.to("cpu", copy=True) for name, tensor in self.adapter()}
            if self._rank == 0:
                save_adapter(adapter_config(model, lora, self._student.path), adapter, folder)
            dist.barrier()
            return
        names = saved_names(model)
        state = {
            name: tensor.to("cpu", copy=True)
            for name, tensor in self._named(model, self._whole)
            if name in names
        }
        state |= {
            name: b.to("cpu", copy=True) for name, b in model.named_buffers() if name in names
        }
        if self._files is not None:
            save_student(model, self._files, state, folder)
        dist.barrier()

    def _weights(self) -> Iterator[Tensor]:
        """Of the model, as this rank holds them, and its buffers."""
        yield from self.student.buffers()
        for parameter in self.student.parameters():
            yield parameter
            # Of one that ZeRO-3 has sharded.
            if (shard := getattr(parameter, "ds_tensor", None)) is not None:
                yield shard

    def _entries(self) -> list[Entry]:
        return entries_of(self._partition, self._buffers() if self._rank == 0 else {})

    def _buffers(self) -> dict[str, Tensor]:
        """Those that belong to a checkpoint, by name."""
        names = saved_names(self.student.model)
        return {name: b for name, b in self.student.model.named_buffers() if name in names}

    def _write(
        self, folder: str, entries: Sequence[Entry], steps: Mapping[str, int]
    ) -> dict[str, FileSum]:
        target = Path(folder)
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        sums = write_entries(target, self._rank, entries, steps)
        if self._files is None:
            return sums
        with writing(target):
            self._files.write(target / STUDENT_FILES)
        sums |= write_layout(target, self._partition.shapes, self._layout)
        with writing(target):
            others = (n for n in files_below(target) if not n.startswith(RANK_FILES))
            return sums | {name: sum_of(target / name, sync=True) for name in others}

    def _whole(self, parameter: torch.nn.Parameter, *, on_every_rank: bool = False) -> Tensor:
        if self._zero_stage < 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            wanted = on_every_rank or self._rank == 0
            return parameter.detach().clone() if wanted else parameter.new_empty(0)


@contextmanager
def _divided(optimizer: Any, divisor: float) -> Iterator[None]:
    """A step of DeepSpeed's optimizer inside divides the gradients before it clips them."""
    if not hasattr(optimizer, "loss_scale"):
        # That of stage 1 in bfloat16, which holds the gradients of all parameters in float32.
        if divisor != 1.0:
            for gradients in optimizer.get_grads_for_reduction()[0]:
                gradients.div_(divisor)
        yield
        return
    # The others, with offload too, take norm and gradients as those of a loss that was multiplied
    # by this; the next backward pass would multiply its own.
    optimizer.loss_scale = divisor
    try:
        yield
    finally:
        optimizer.loss_scale = 1.0


_SMALLEST_BUCKET = 1 << 20


def engine_config(settings: TrainerSettings, *, hidden_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration as a dictionary.

    One number of micro-batches a step cannot be given: the trainer marks the last one of each step
    itself, so accumulation steps are 1 here and DeepSpeed divides by nothing but the ranks.

    Args:
        settings: the trainer's.
        hidden_size: of the student; bucket sizes scale with it as in transformers' defaults.
        on_gpu: whether the engine runs on a GPU.
    """
    adam: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_eps,
        "weight_decay": settings.weight_decay,
    }
    if not settings.offload_optimizer:
        # torch's AdamW needs no compiler; with optimizer offload DeepSpeed takes its own.
        adam |= {"torch_adam": True, "fused": True}
    zero: dict[str, Any] = {
        "stage": effective_zero_stage(settings),
        "reduce_bucket_size": max(hidden_size**2, _SMALLEST_BUCKET),
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        # Vectors stay whole on every rank, matrices are sharded.
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    in_main_memory = {"device": "cpu", "pin_memory": on_gpu}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = in_main_memory
    if settings.offload_parameters:
        zero["offload_param"] = in_main_memory
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
    }
    if settings.dtype == Dtype.bfloat16:
        config["bf16"] = {"enabled": True}
        # Gradients are summed over micro-batches and ranks in float32.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config
