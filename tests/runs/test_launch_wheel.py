"""Source package and wheel: what they hold, and that the command runs from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = ("__pycache__", ".*_cache", ".git", ".venv", "*.egg-info")
SKIPPED += ("build", "dist", "outputs", "site")
FOLDERS = ("actors", "benchmarks", "configs", "docs", "examples")
FOLDERS += ("launch", "opd_ray", "requirements", "tests")
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "README.md")
BESIDE += ("Dockerfile", "Dockerfile.cuda", ".dockerignore")
BESIDE += ("mkdocs.yml", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both; the wheel is made of the source package, so of nothing beside it."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "opd-ray"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*SKIPPED))
    subprocess.run(
        [
            *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "built"),
            source,
        ],
        check=True,
        timeout=400,
        stdout=subprocess.DEVNULL,
    )
    return folder / "built"


@pytest.fixture(scope="module")
def wheel(packages: Path) -> Path:
    (built,) = packages.glob("opd_ray-*.whl")
    return built


def test_the_source_package_holds_what_is_built_documented_and_tested(packages: Path) -> None:
    (built,) = packages.glob("opd_ray-*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert [file for file in [*files, *BESIDE] if file not in held] == []


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
        timeout=400,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command,
            check=True,
            timeout=400,
            stdout=subprocess.PIPE,
            text=True,
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(target)},
        ).stdout

    where = run(sys.executable, "-c", "import opd_ray, actors, configs; print(configs.__file__)")
    assert where.strip().startswith(str(target))
    resolved = run(target / "bin" / "opd-ray", "train", "--config", "demo", "--print-config")
    assert "output_dir" in resolved
