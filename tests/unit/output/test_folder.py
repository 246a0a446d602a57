"""The output folder: its lock between processes, and the run that it already holds."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config, RunSettings, StudentSettings
from opd_ray.errors import OutputFolderError
from opd_ray.output.folder import LOCK_FILE, OutputFolder, lock_holder, versions

HOLDER = """
import sys, time
from opd_ray.output.folder import OutputFolder
with OutputFolder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def make_config(folder: Path, **run: object) -> Config:
    return Config(
        run=RunSettings(output_dir=str(folder), **run), student=StudentSettings(path="student")
    )


def test_a_live_run_keeps_others_out_and_a_dead_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputFolderError) as caught, OutputFolder(folder):
            pass
        assert f"process {holder.pid} on {os.uname().nodename}, started " in str(caught.value)
        assert "run.output_dir" in str(caught.value)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with OutputFolder(folder):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    with OutputFolder(tmp_path), pytest.raises(OutputFolderError), OutputFolder(tmp_path):
        pass
    with OutputFolder(tmp_path):
        pass


def test_who_looks_for_a_holder_keeps_no_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / LOCK_FILE).open("wb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))
        with OutputFolder(tmp_path):
            assert lock_holder(tmp_path / LOCK_FILE)
    assert lock_holder(tmp_path / LOCK_FILE) == ""


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputFolderError, match="cannot be written"),
        OutputFolder(tmp_path / "file"),
    ):
        pass
    below = tmp_path / "file" / "run"
    with pytest.raises(OutputFolderError, match=f"run.output_dir = '{below}'"), OutputFolder(below):
        pass


def test_config_and_versions_are_written(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", seed=3)
    with OutputFolder(tmp_path / "run") as folder:
        folder.begin(config)
    assert load_config(str(folder.config)) == config
    written = json.loads(folder.versions.read_text())
    assert written["python"] == sys.version.split()[0]
    assert written["packages"]["omegaconf"].startswith("2.4")


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    config = make_config(tmp_path, resume="never", steps=5)
    with OutputFolder(tmp_path) as folder:
        folder.begin(config)
        folder.metrics.write_text("{}\n")
        assert folder.accept(config, None) == []
        other = replace(config, run=replace(config.run, steps=6))
        with pytest.raises(OutputFolderError, match=r"run\.steps: 5 -> 6.*choose another"):
            folder.accept(other, None)
        assert "steps: 5" in folder.config.read_text()


def test_a_folder_that_is_cleared_keeps_what_is_not_the_runs(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        folder.begin(make_config(tmp_path))
        folder.metrics.write_text("{}\n")
        folder.history.finish(3)
        (folder.checkpoints / "step_00000001").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("mine")
        folder.clear()
        assert not folder.metrics.exists()
        assert not folder.checkpoints.exists()
        assert folder.history.finished is None
        assert (tmp_path / "notes.txt").exists()


def test_a_start_that_failed_before_it_measured_anything_leaves_no_run(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with OutputFolder(tmp_path) as folder:
        folder.begin(config)
        other = replace(config, student=StudentSettings(path="right"))
        assert folder.accept(other, None) == []
        folder.metrics.write_text('{"step": 1}\n')
        with pytest.raises(OutputFolderError, match="student.path: 'student' -> 'right'"):
            folder.accept(other, None)


def test_what_is_left_of_a_broken_installation_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip leaves ``~orch-2.13.0.dist-info`` behind when it is stopped half way."""
    (tmp_path / "~orch-2.13.0.dist-info").mkdir()
    whole = tmp_path / "whole-1.5.dist-info"
    whole.mkdir()
    (whole / "METADATA").write_text("Metadata-Version: 2.1\nName: whole\nVersion: 1.5\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert versions()["packages"] == {"whole": "1.5"}
