"""The values that a key with a fixed set of choices can take."""

from __future__ import annotations

from enum import StrEnum


class Dtype(StrEnum):
    """Number format of weights and matrix products."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Scoring(StrEnum):
    """Where the scores of the token filter come from."""

    streamed = "streamed"
    exact = "exact"


class SignalChoice(StrEnum):
    """What of the teacher's distribution reaches the loss."""

    topk = "topk"
    hidden = "hidden"
    sampled = "sampled"


class Support(StrEnum):
    """Whose likeliest tokens a loss from the top-k signal tells apart; the rest is one bucket."""

    teacher = "teacher"
    student = "student"
    union = "union"


class TeacherTiming(StrEnum):
    """When a teacher scores the rollouts of a step."""

    streaming = "streaming"
    after_writing = "after_writing"


class CacheMode(StrEnum):
    """What becomes of a teacher's answers on disk."""

    off = "off"
    record = "record"
    replay = "replay"
    replay_or_ask = "replay_or_ask"


class LrSchedule(StrEnum):
    """Course of the learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class LoraForm(StrEnum):
    """What leaves the trainer of a student that is trained as an adapter."""

    adapter = "adapter"
    merged = "merged"


class BaseFormat(StrEnum):
    """Number format of the weights that an adapter leaves as they are."""

    full = "full"
    nf4 = "nf4"


class SyncBackend(StrEnum):
    """How new weights reach the rollout engines."""

    ray = "ray"
    nccl = "nccl"
    ipc = "ipc"


class PlacementChoice(StrEnum):
    """Which roles of a run are on the same GPUs."""

    separate = "separate"
    shared = "shared"
    turns = "turns"


class Beside(StrEnum):
    """Whose GPUs teachers share."""

    rollout = "rollout"
    trainer = "trainer"
