"""``opd-ray check-teacher``: every teacher of a config, loaded in this process and probed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from actors.teacher.registry import make_teacher
from actors.teacher.support import asked_of_teacher
from opd_ray.cluster.session import RaySession
from opd_ray.config.choices import CacheMode
from opd_ray.config.resolved_teachers import WorkingTeacher
from opd_ray.config.schema import Config
from opd_ray.preflight.config import check_config
from opd_ray.preflight.contract.differences import TOLERANCE
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.preflight.pairing import Pairing, uncompared_tokenizer


def check_teacher(config: Config) -> list[str]:
    """Every violation of the contract by a teacher of the run, with its name where several work.

    A teacher of kind ``actor`` is asked through Ray at ``cluster.address``; every other kind is
    loaded here, with the CPU threads that PyTorch takes by itself.

    Raises:
        OpdError: a config that no run can have, a pair that does not fit, or a teacher that cannot
            be loaded.
    """
    # Recorded answers would say nothing of the teacher, and probes are not worth recording.
    live = replace(config.teacher, cache=CacheMode.off, cache_dir=None)
    others = {
        name: {key: value for key, value in own.items() if key not in ("cache", "cache_dir")}
        for name, own in config.teachers.items()
    }
    config = replace(config, teacher=live, teachers=others)
    check_config(config)
    pairing = check_models(config)
    teachers = config.teacher_set
    in_cluster = any(model.traits.asks_cluster for model in teachers.models.values())
    found: list[str] = []
    with RaySession(config.cluster) if in_cluster else nullcontext():
        for teacher in teachers.working.values():
            violations = _violations(config, teacher, pairing)
            several = f"{teacher.settings.key}: " if len(teachers.working) > 1 else ""
            found += [f"{several}{text}" for text in violations]
    return found


def _violations(config: Config, working: WorkingTeacher, pairing: Pairing) -> list[str]:
    settings, models = working.settings, working.models
    # A teacher of the user's own with too large a vocabulary is to be named, not refused.
    size = None if settings.traits.user_made else pairing.vocab_size
    own = own_topk(config)
    teacher = make_teacher(
        settings, vocab_size=size, own_topk=own, members=working.members, support=config.support
    )
    # An ensemble is as coarse as its coarsest member, and has what differs in any of them.
    asked = replace(
        asked_of_teacher(settings, config.support),
        dtype=max((model.dtype for model in models), key=TOLERANCE.__getitem__),
        accept_mismatch=sorted(working.accepted),
    )
    try:
        found = contract_violations(
            teacher,
            asked,
            pairing.vocab_size,
            context_length=config.student.context_length,
            record_topk=config.rollout.record_topk,
            own_topk=own,
            support=config.support,
            tokenizer_hash=pairing.tokenizer_hash,
        )
        if not found and (note := uncompared_tokenizer(teacher.info(), models)):
            print(note)
        return found
    finally:
        teacher.close()
