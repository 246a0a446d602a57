"""The processes of one run, found by a mark in their environment, whoever their parent is."""

from __future__ import annotations

import psutil

from opd_ray.signals import PASSED_ON_BY

MARK = "OPD_RAY_CAMPAIGN"

# What a process shows as its command; Ray puts an actor's class there.
_TITLES = {
    "rollout": ("ray::RolloutActor",),
    "teacher": ("ray::TeacherActor",),
    "trainer": ("ray::TrainerActor",),
    "raylet": ("/raylet/raylet",),
    "driver": ("opd_ray train", "opd-ray train"),
    "evaluation": ("opd_ray eval", "opd-ray eval"),
}


def processes(mark: str) -> list[psutil.Process]:
    """All that live and carry the mark."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def of_role(mark: str, role: str) -> list[psutil.Process]:
    """Those of a role, in the order of their ids."""
    return [process for process in processes(mark) if _plays(process, role)]


def kill_all(mark: str) -> None:
    """End whatever is left."""
    for process in processes(mark):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _plays(process: psutil.Process, role: str) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    # Not whoever starts it again.
    if role == "driver" and not _is_supervised(process):
        return False
    return any(_matches(title, text) for text in _TITLES[role])


def _matches(title: str, text: str) -> bool:
    return title.startswith(text) if text.startswith("ray::") else text in title


def _is_supervised(process: psutil.Process) -> bool:
    try:
        return PASSED_ON_BY in process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
