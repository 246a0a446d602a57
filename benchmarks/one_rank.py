"""A trainer that is a group of one rank, in the process that asks for it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import numpy as np

from opd_ray.config.schema import LossSettings, StudentSettings, TrainerSettings
from opd_ray.types import HeadPart

if TYPE_CHECKING:
    from actors.trainer.trainer import Trainer


def one_rank(
    student: StudentSettings,
    settings: TrainerSettings,
    head_VD: np.ndarray,
    bias_V: np.ndarray | None = None,
) -> Trainer:
    """With the default loss, and with a teacher's output head whose rows are its vocabulary."""
    from actors.trainer.trainer import Trainer

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    trainer = Trainer(
        student,
        settings,
        LossSettings(),
        rank=0,
        master=("127.0.0.1", port),
        vocab_size=len(head_VD),
    )
    trainer.set_teacher_head((HeadPart(head_VD, bias_V),))
    return trainer
