"""Terminals of any encoding, readers that leave, and files with the names of packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import opd_ray
from opd_ray.cli import surroundings
from opd_ray.errors import READER_LEFT, ConfigError

HOME = Path(opd_ray.__file__).parents[1]
PRINT_CONFIG = "opd_ray", "train", "--config", "demo", "--print-config"


def command(
    *arguments: str | bytes, folder: Path, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """``python -m`` run in a folder, with opd-ray on PYTHONPATH."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOME), **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
    )


def test_what_an_encoding_lacks_is_spelled(tmp_path: Path) -> None:
    text = "data.system_prompt=Grüße"
    printed = command(*PRINT_CONFIG, text, folder=tmp_path, PYTHONIOENCODING="ascii")
    assert printed.returncode == 0, printed.stderr
    assert rb"system_prompt: Gr\xfc\xdfe" in printed.stdout


def test_arguments_that_are_no_text_here_are_refused(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    refused = command(*PRINT_CONFIG, "data.path=ü".encode(), folder=tmp_path, **locale)
    assert refused.returncode == 2
    said = refused.stderr.decode()
    assert "cannot be read as ascii: set PYTHONUTF8=1 or a UTF-8 locale" in said
    assert "Traceback" not in said


def test_modules_of_ones_own_are_found_in_the_current_folder(tmp_path: Path) -> None:
    """Where the command is installed too: it leaves the current folder out, as -P does here."""
    example = HOME / "examples" / "custom_rule" / "surprise.py"
    (tmp_path / "surprise.py").write_text(example.read_text())
    installed = "from opd_ray.cli import main; main(['check-rule', 'surprise:surprise'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", installed],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        timeout=120,
    )
    assert (done.stderr, done.returncode) == (b"", 0)
    assert b"surprise" in done.stdout


def test_a_reader_that_leaves_ends_a_command_without_a_word(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    printed = command(*PRINT_CONFIG, folder=tmp_path, stdout=writing)
    os.close(writing)
    # What is short stays in Python's buffer until the command is over, and it did its work.
    assert (printed.returncode, printed.stderr) in ((0, b""), (READER_LEFT, b""))


def test_a_command_that_notices_that_its_reader_left_gives_the_code_of_a_shell(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys; from opd_ray.cli import main, train; "
        "train.run_training = lambda args: print('x' * 100000); "
        "sys.exit(main(['train', '--config', 'demo']))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    assert (printed.returncode, printed.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("actors/__init__.py", "actors: is imported in place of opd-ray's own package 'actors'"),
        ("configs/__init__.py", "configs: is imported in place of opd-ray's own package 'configs'"),
        ("torch.py", "torch.py: is imported in place of the package 'torch'"),
    ],
)
def test_a_file_in_the_current_folder_that_hides_a_package_is_named(
    tmp_path: Path, file: str, said: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    refused = command(*PRINT_CONFIG, folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, b"")
    text = refused.stderr.decode()
    assert f"{tmp_path}/{said}: rename it, take its folder off PYTHONPATH" in text
    assert len(text.splitlines()) == 1


def test_other_files_and_folders_of_the_user_are_no_matter(tmp_path: Path) -> None:
    """A folder without ``__init__.py`` gives way to a package, and other names hide nothing."""
    for folder in ("actors", "configs", "datasets", "data", "opd_ray_runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data.py").write_text("")
    assert command(*PRINT_CONFIG, folder=tmp_path).returncode == 0


def test_the_current_folder_counts_where_only_actors_import_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ``opd-ray`` itself does not look there, Ray's processes do so first."""
    (tmp_path / "vllm.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in sys.path
    with pytest.raises(ConfigError, match=r"vllm\.py: is imported in place of the package 'vllm'"):
        surroundings.check_packages()


def test_all_hidden_packages_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "__file__", "/elsewhere/opd_ray/cli/surroundings.py")
    with pytest.raises(ConfigError) as raised:
        surroundings.check_packages()
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        str(HOME / "actors"),
        str(HOME / "configs"),
    ]
