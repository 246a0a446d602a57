"""demo.sh, single_node.sh and test.sh: what they run, in an environment of stand-ins."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Notes its name and arguments; fails if its name and arguments contain the words in FAIL.
COMMAND = """#!/usr/bin/env bash
[[ "${1:-}" == - ]] && exit 1  # a script from standard input: no database of faults answers
echo "${0##*/} $*"
[[ -z "${FAIL:-}" || "${0##*/} $*" != *"$FAIL"* ]]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine whose activated environment holds stand-ins for every command."""
    binaries = tmp_path / "env" / "bin"
    binaries.mkdir(parents=True)
    for name in ("opd-ray", "ray", "python", "ruff", "mypy", "lint-imports", "mkdocs"):
        (binaries / name).write_text(COMMAND)
        (binaries / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OPD_RAY_"))}
    return {
        **kept,
        "VIRTUAL_ENV": str(tmp_path / "env"),
        "OPD_RAY_SETUP": "none",
        "RAY_TMPDIR": str(tmp_path),
    }


def run(script: str, *arguments: str, env: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code and lines of standard output; started from a folder that is not the repository."""
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        env=env,
        cwd=Path(env["VIRTUAL_ENV"]).parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout.splitlines()


def test_demo_passes_overrides_and_exit_code_on(environment: dict[str, str]) -> None:
    assert run("demo.sh", "run.seed=1", "a b", env=environment) == (
        0,
        ["opd-ray demo run.seed=1 a b"],
    )
    code, _ = run("demo.sh", env={**environment, "FAIL": "demo"})
    assert code == 1


def test_single_node_starts_its_own_ray(environment: dict[str, str]) -> None:
    code, lines = run("single_node.sh", "demo", "run.seed=1", env=environment)
    assert (code, lines) == (0, ["opd-ray train --config demo run.seed=1"])


def test_single_node_joins_the_named_cluster(environment: dict[str, str]) -> None:
    _, lines = run("single_node.sh", "demo", env={**environment, "RAY_ADDRESS": "10.0.0.1:6379"})
    assert lines == ["opd-ray train --config demo cluster.address=10.0.0.1:6379"]


def test_single_node_joins_a_started_cluster_only_while_it_lives(
    environment: dict[str, str],
) -> None:
    started = Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster")
    started.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        started.write_text(f"{address}\n")
        # Whether it takes us, with a token or not, is for the run to find: it has the better words.
        _, lines = run("single_node.sh", "demo", env={**environment, "FAIL": "ray status"})
        assert lines == [f"opd-ray train --config demo cluster.address={address}"]
        elsewhere = {**environment, "TMPDIR": environment["RAY_TMPDIR"]}
        del elsewhere["RAY_TMPDIR"]  # Ray's own order: RAY_TMPDIR, TMPDIR, /tmp
        _, again = run("single_node.sh", "demo", env=elsewhere)
        assert again == lines
    _, lines = run("single_node.sh", "demo", env=environment)
    assert lines == ["opd-ray train --config demo"]


def test_single_node_leaves_an_explicit_address_alone(environment: dict[str, str]) -> None:
    variables = {**environment, "RAY_ADDRESS": "10.0.0.1:6379"}
    _, lines = run("single_node.sh", "demo", "cluster.address=h:1", "run.seed=1", env=variables)
    assert lines == ["opd-ray train --config demo cluster.address=h:1 run.seed=1"]


def test_single_node_passes_retries_on(environment: dict[str, str]) -> None:
    _, lines = run("single_node.sh", "--retries", "3", "demo", "run.seed=1", env=environment)
    assert lines == ["opd-ray train --retries 3 --config demo run.seed=1"]
    for arguments in (["--retries"], ["--retries", "3"]):
        assert run("single_node.sh", *arguments, env=environment) == (2, [])


def test_single_node_wants_a_config(environment: dict[str, str]) -> None:
    code, lines = run("single_node.sh", env=environment)
    assert (code, lines) == (2, [])


def test_everything_is_checked_and_tested_in_order(environment: dict[str, str]) -> None:
    code, lines = run("test.sh", env=environment)
    assert code == 0
    calls = [line for line in lines if not line.startswith("==")]
    checks = ["ruff check .", "ruff format --check .", "mypy ", "lint-imports --no-logo"]
    assert calls[:4] == checks
    assert calls[4].startswith("mkdocs build --strict ")
    assert calls[-1].startswith("python -m pytest ")
    assert calls[-1].endswith("tests/runs tests/actors tests/unit")
    passed = [line.split(": passed")[0] for line in lines if line.startswith("==")]
    names = ("ruff check", "ruff format", "mypy", "import directions", "docs as a site", "package")
    assert passed == [f"== {name}" for name in (*names, "known vulnerabilities")]
    assert lines[-1] == calls[-1]  # pytest's summary comes last


@pytest.mark.parametrize(
    "failing", ["ruff check", "format", "mypy", "lint-imports", "mkdocs", "build", "pytest"]
)
def test_any_failure_fails_all_and_stops_nothing(environment: dict[str, str], failing: str) -> None:
    code, lines = run("test.sh", env={**environment, "FAIL": failing})
    assert code == (2 if failing == "pytest" else 1)
    assert any(line.startswith("python -m pytest") for line in lines)


def test_a_part_alone_with_pytest_arguments(environment: dict[str, str]) -> None:
    code, lines = run("test.sh", "unit", "-k", "tip", env=environment)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].endswith("tests/unit -k tip")
    _, lines = run("test.sh", "checks", env=environment)
    assert not any("pytest" in line for line in lines)
