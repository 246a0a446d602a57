"""``opd-ray check-teacher``: the configured teacher, loaded in this process and probed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from actors.teacher.contract import contract_violations
from actors.teacher.registry import make_teacher
from opd_ray.assembly import check_models, own_topk
from opd_ray.config.check import check_config
from opd_ray.config.choices import CacheMode
from opd_ray.config.schema import Config
from opd_ray.ray_session import RaySession


def check_teacher(config: Config) -> list[str]:
    """Every violation of the contract by the configured teacher.

    A teacher of kind ``actor`` is asked through Ray at ``cluster.address``; every other kind is
    loaded here, with the CPU threads that PyTorch takes by itself.

    Raises:
        OpdError: a config that no run can have, a pair that does not fit, or a teacher that cannot
            be loaded.
    """
    # Recorded answers would say nothing of the teacher, and probes are not worth recording.
    live = replace(config.teacher, cache=CacheMode.off, cache_dir=None)
    config = replace(config, teacher=live)
    check_config(config)
    pairing, _ = check_models(config)
    with RaySession(config.cluster) if config.teacher.kind == "actor" else nullcontext():
        # A teacher of the user's own with too large a vocabulary is to be named, not refused.
        size = None if config.teacher.kind in ("class", "actor") else pairing.vocab_size
        teacher = make_teacher(config.teacher, vocab_size=size, own_topk=own_topk(config))
        try:
            return contract_violations(
                teacher,
                config.teacher,
                pairing.vocab_size,
                context_length=config.student.context_length,
                record_topk=config.rollout.record_topk,
                own_topk=own_topk(config),
            )
        finally:
            teacher.close()
