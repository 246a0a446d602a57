"""The lock file: how it is made from pip's report, and that it agrees with what asks for it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")


def locked_lines(report: dict[str, Any], without: tuple[str, ...]) -> list[str]:
    path = ROOT / "requirements" / "lock_from_report.py"
    spec = importlib.util.spec_from_file_location("lock_from_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines: list[str] = module.locked_lines(report, without)
    return lines


def package(name: str, *needs: str, requested: bool = False, extras: tuple[str, ...] = ()) -> Any:
    return {
        "metadata": {"name": name, "version": "1.0", "requires_dist": list(needs)},
        "requested": requested,
        "requested_extras": list(extras),
    }


def test_what_only_a_package_left_out_needs_is_left_out_too() -> None:
    report = {
        "environment": {"python_version": "3.11", "sys_platform": "linux"},
        "install": [
            package("Engine", "Vision", "shared_part>=0.5", requested=True),
            package("vision", "only-vision", "shared.part"),
            package("only-vision"),
            package("shared-part", "loop"),
            package("loop", "shared-part"),
        ],
    }
    assert locked_lines(report, ("vision",)) == ["engine==1.0", "loop==1.0", "shared-part==1.0"]


def test_extras_and_markers_decide_what_is_needed() -> None:
    report = {
        "environment": {"python_version": "3.11", "sys_platform": "linux"},
        "install": [
            package(
                "server",
                "web ; extra == 'http'",
                "grid ; extra == 'mesh'",
                "windows-part ; sys_platform == 'win32'",
                "client[fast]",
                requested=True,
                extras=("http",),
            ),
            package("web"),
            package("grid"),
            package("windows-part"),
            package("client", "speedups ; extra == 'fast'", "slow ; extra == 'careful'"),
            package("speedups"),
            package("slow"),
        ],
    }
    names = [line.partition("==")[0] for line in locked_lines(report, ())]
    assert names == ["client", "server", "speedups", "web"]


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def test_the_lock_holds_what_was_asked_for(lock: dict[str, Version]) -> None:
    lines = (ROOT / "requirements" / "cpu.in").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if re.match(r"\w", line)]
    assert len(wanted) > 20
    for requirement in wanted:
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert not set(LEFT_OUT) & set(lock)


def test_the_lock_lies_within_the_ranges_of_the_package(
    lock: dict[str, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    path = ROOT / "setup.py"
    exec(compile(path.read_text(), path, "exec"), {"__file__": str(path)})
    for text in given["install_requires"] + given["extras_require"]["cpu"]:
        requirement = Requirement(text)
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text
