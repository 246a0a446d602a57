"""What a student that is trained as an adapter cannot be combined with, or cannot have."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from opd_ray.config.choices import BaseFormat, LoraForm, PlacementChoice, SyncBackend
from opd_ray.config.lora import SERVED_RANKS
from opd_ray.config.ranges import range_problems
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.engine_limits import lora_problems as engine_problems
from opd_ray.models.lora_targets import linear_layers, target_problems
from opd_ray.models.shape import ModelShapeError, described_model

_PLACE = "student.lora"


def lora_problems(config: Config) -> Iterator[str]:
    """Values and combinations of ``student.lora``, as far as the configuration tells."""
    lora = config.student.lora
    yield from range_problems(_PLACE, lora)
    if not lora.on:
        return
    yield from missing_packages(config)
    for settings in config.teacher_set.models.values():
        if config.asks_trainers(settings):
            yield from _base_problems(config, settings)
    if config.serves_adapter:
        yield from _served_problems(config)
    if lora.base is BaseFormat.nf4:
        yield from _four_bit_problems(config)


def missing_packages(config: Config) -> Iterator[str]:
    """What adapters need and this machine lacks; another may have it."""
    lora = config.student.lora
    if lora.on and find_spec("peft") is None:
        yield (
            f"{_PLACE}.rank = {lora.rank}: peft, which makes adapters, is not installed; pip "
            f"install peft, or set {_PLACE}.rank=0"
        )
    in_four_bits = lora.on and lora.base is BaseFormat.nf4 and config.trainer.gpus_per_rank > 0
    if in_four_bits and find_spec("bitsandbytes") is None:
        yield (
            f"{_PLACE}.base = {BaseFormat.nf4}: bitsandbytes, which computes with four-bit "
            f"weights, is not installed; pip install bitsandbytes, or set {_PLACE}.base=full"
        )


def _served_problems(config: Config) -> Iterator[str]:
    """Of an adapter that vLLM is to add to its own weights."""
    lora = config.student.lora
    if lora.rank not in SERVED_RANKS:
        yield (
            f"{_PLACE}.rank = {lora.rank}: vLLM serves adapters of rank "
            f"{', '.join(map(str, SERVED_RANKS))}; use one of them, or sync.lora=merged"
        )
    if config.sync.backend is not SyncBackend.ray:
        yield (
            f"sync.backend = {config.sync.backend} with sync.lora = {config.sync.lora}: vLLM takes "
            "adapters from files alone; use sync.backend=ray, or sync.lora=merged"
        )
    try:
        described = described_model(config.student.path)
    except ModelShapeError:  # told where paths are checked
        described = None
    on_cpu = not config.rollout.gpus_per_actor
    for text in engine_problems(described or {}, on_cpu=on_cpu):
        yield f"student.path = {config.student.path!r} with {_PLACE}.rank = {lora.rank}: {text}"
    for key, settings in config.teacher_set.models.items():
        if settings.follow_decay is not None:
            yield (
                f"{key}.follow_decay = {settings.follow_decay:g} with sync.lora = "
                f"{config.sync.lora}: a teacher that follows takes in whole weights; use "
                f"sync.lora=merged, or leave {key}.follow_decay out"
            )


def _base_problems(config: Config, teacher: TeacherSettings) -> Iterator[str]:
    """Of a teacher that is the student with its adapter off, computed by the trainers."""
    trainer, key = config.trainer, teacher.key
    place = f"{key}.kind = {teacher.kind} with {_PLACE}.rank = {config.student.lora.rank}"
    computed = "the trainers compute its answers with the weights that they have"
    copy = f"or have a copy, {key}.kind=hf and {key}.path={config.student.path}"
    if trainer.zero_stage == 3:
        yield (
            f"{place} and trainer.zero_stage = 3: {computed}, and no rank has them whole; use "
            f"trainer.zero_stage 0, 1 or 2, {copy}"
        )
    if teacher.dtype is not trainer.dtype:
        yield (
            f"{place}, {key}.dtype = {teacher.dtype} and trainer.dtype = {trainer.dtype}: "
            f"{computed}; make the two equal, {copy}"
        )
    if teacher.gpus_per_replica:
        yield (
            f"{place} and {key}.gpus_per_replica = {teacher.gpus_per_replica:g}: {computed}; set "
            "it to 0"
        )
    if config.cluster.placement is PlacementChoice.turns:
        # The copy has its turn on the GPU of the others, where these are on GPUs.
        beside = f" and {key}.gpus_per_replica=1" if trainer.gpus_per_rank else ""
        yield (
            f"{place} and cluster.placement = turns: {computed}, and they are asleep while it is "
            f"asked; use another cluster.placement, {copy}{beside}"
        )


def _four_bit_problems(config: Config) -> Iterator[str]:
    """Of frozen weights in four bits."""
    place = f"{_PLACE}.base = {BaseFormat.nf4}"
    trainer = config.trainer
    if not trainer.gpus_per_rank:
        yield (
            f"{place} with trainer.gpus_per_rank = 0: four-bit weights are computed with on CUDA; "
            f"give the trainers GPUs, or set {_PLACE}.base=full"
        )
    if trainer.zero_stage == 3:
        yield (
            f"{place} with trainer.zero_stage = 3: packed four-bit weights are not sharded; use "
            "trainer.zero_stage 0, 1 or 2"
        )
    if config.sync.lora is LoraForm.merged:
        yield (
            f"{place} with sync.lora = merged: an adapter added to four-bit weights is rounded "
            "away; use sync.lora=adapter"
        )
    if config.student.lora.export is LoraForm.merged and config.run.export_at_end:
        yield (
            f"{place} with {_PLACE}.export = merged: an adapter added to four-bit weights is "
            f"rounded away; use {_PLACE}.export=adapter"
        )


def layer_problems(config: Config) -> Iterator[str]:
    """Target layers that the student lacks; the model is built without memory for its weights."""
    lora, student = config.student.lora, config.student
    if not lora.on:
        return
    layers = linear_layers(student.path, trust_remote_code=student.trust_remote_code)
    for text in target_problems(layers, lora.target_modules):
        yield f"{_PLACE}.target_modules = {lora.target_modules}: {text}"
