"""The wheel: what it holds, and that the command runs from any folder without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build", "dist", "outputs")
    shutil.copytree(ROOT, source / "opd-ray", ignore=skipped)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", source, source / "opd-ray"),
        ],
        check=True,
        timeout=120,
    )
    (built,) = source.glob("opd_ray-*.whl")
    return built


def test_the_wheel_holds_the_code_and_its_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("opd_ray", "actors", "configs"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in held
    assert not any(name.startswith(("tests", "launch", "requirements")) for name in held)


def test_the_command_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--target", target, wheel),
        ],
        check=True,
        timeout=120,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command,
            check=True,
            timeout=120,
            stdout=subprocess.PIPE,
            text=True,
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(target)},
        ).stdout

    where = run(sys.executable, "-c", "import opd_ray, actors, configs; print(configs.__file__)")
    assert where.strip().startswith(str(target))
    resolved = run(target / "bin" / "opd-ray", "train", "--config", "demo", "--print-config")
    assert "output_dir" in resolved
