"""The GPU check: whatever a part does, the others run and the report says what it was."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from gpu_check import part as parts_file
from gpu_check import runner
from gpu_check.__main__ import main
from gpu_check.inputs import held_gb
from gpu_check.part import MACHINE, PARTS, Part, missing
from gpu_check.parts import short_run

from actors.rollout.engine import RolloutEngine
from opd_ray.config.load import load_config
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.data.prompts import divergence_prompts
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.config import check_config

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [ROOT, ROOT / "benchmarks", ROOT / "tests" / "unit"]


@pytest.fixture(autouse=True)
def _found_by_children(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, FOLDERS)))
    monkeypatch.setattr(runner, "_LEAVE_SECONDS", 0.5)


def a_part(name: str, argument: str, **changes) -> Part:
    options = {"needs": (), "gpus": 0, "seconds": 60} | changes
    return Part(name, f"that it can {name}", "misbehaving_parts", argument, **options)


def check(folder: Path, *arguments: str, parts: list[Part], gpus: int = 0) -> tuple[int, dict, str]:
    """Exit code, the report's parts by name, and the report."""
    machine = a_part("machine", f"machine:{gpus}")
    out = folder / "report"
    code = main(["--out", str(out), *arguments], parts, machine)
    found = json.loads((out / "report.json").read_text())["parts"]
    return code, {own["part"]: own for own in found}, (out / "report.md").read_text()


def test_parts_that_fail_crash_and_hang_leave_the_others_alone(tmp_path):
    daemon = tmp_path / "daemon"
    parts = [
        a_part("raise", "raise"),
        a_part("crash", "crash"),
        a_part("hang", f"hang:{daemon}", seconds=6),
        a_part("check", "check"),
        a_part("pass", "pass"),
    ]
    code, found, text = check(tmp_path, "--device", "cpu", parts=parts)
    assert code == 1
    states = {name: own["state"] for name, own in found.items()}
    assert states == {
        "machine": "passed",
        "raise": "FAILED",
        "crash": "FAILED",
        "hang": "HUNG",
        "check": "FAILED",
        "pass": "passed",
    }
    assert found["raise"]["reason"].startswith("RuntimeError: no kernel image on cpu")
    assert found["crash"]["reason"].startswith("killed by SIGSEGV")
    assert "about to crash" in text
    assert found["hang"]["reason"] == "did not end within 6 s"
    assert "waiting for NCCL" in text
    assert found["check"]["reason"] == "a number: nan, at most 1 expected"
    assert re.search(r"near enough \| 0.3 \| 0.2 \| \*\*not held\*\*", text)
    assert "| near enough | 0.1 | 0.2 |  |" in text
    assert "| 1 | 2 |" in text
    # What the hanging part had started is gone, too.
    assert not _lives(int(daemon.read_text()))
    # Nobody's folders are in what is sent in.
    assert str(ROOT) not in text
    assert str(Path.home()) not in json.dumps(found)


def test_a_part_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(parts_file.OLDEST, "numpy", "99.1")
    parts = [
        a_part("lacks", "pass", needs=("no_such_package", "numpy")),
        a_part("two", "pass", gpus=2),
        a_part("pass", "pass"),
    ]
    code, found, text = check(tmp_path, parts=parts, gpus=1)
    assert code == 0
    assert [own["state"] for own in found.values()] == ["passed", "not run", "not run", "passed"]
    assert found["lacks"]["reason"].startswith(
        "needs no_such_package (not installed), numpy 99.1 or"
    )
    assert found["two"]["reason"] == "needs 2 GPUs, 1 found"
    assert "needs 2 GPUs, 1 found" in text

    parts = [
        a_part("compile", "pass", programs=("no_such_compiler",)),
        a_part("gpu", "pass", not_on_cpus="nothing moves"),
    ]
    _, found, _ = check(tmp_path, "--device", "cpu", parts=parts)
    assert found["compile"]["reason"] == "needs the program no_such_compiler (not in PATH)"
    assert found["gpu"]["reason"] == "needs a GPU: nothing moves"
    _, found, _ = check(tmp_path, "--only", "gpu", parts=parts, gpus=1)
    assert {name: own["state"] for name, own in found.items()} == dict.fromkeys(
        ("machine", "gpu"), "passed"
    )


def test_the_list_says_what_every_part_shows_and_needs(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]
    (nccl,) = (line for line in lines if line.startswith("sync_nccl"))
    assert nccl.endswith("vllm, 2 GPUs)")


def test_what_is_asked_of_a_gpu_alone_is_there_to_be_asked():
    """Lines that no CPU comes to: their calls, held against the installed sources."""
    inspect.signature(torch.cuda.mem_get_info).bind()
    inspect.signature(torch.cuda.memory_allocated).bind()
    with patch("torch.cuda.mem_get_info", return_value=(3 * 10**9, 8 * 10**9)):
        assert held_gb("cuda") == 5.0
    assert 0.01 < held_gb("cpu") < 100

    from vllm.engine.arg_utils import EngineArgs

    engine = RolloutEngine.__new__(RolloutEngine)
    engine._student = StudentSettings(str(pair_folder() / "student"), lora=LoraSettings(rank=16))
    engine._rollout, engine._sync = RolloutSettings(gpus_per_actor=1), SyncSettings()
    engine._sleeps, engine._vocab_size = True, None
    asked = engine.engine_args()
    assert {"enable_sleep_mode", "enable_lora"} <= asked.keys()
    assert asked.keys() <= {field.name for field in fields(EngineArgs)}


def test_versions_are_numbers_before_a_plus():
    assert parts_file._numbers("2.13.0+cpu") == (2, 13, 0)
    assert parts_file._numbers("5.0.0rc1") == (5, 0, 0)
    assert parts_file._numbers("2.9") < parts_file._numbers("2.13")
    assert missing(a_part("torch", "", needs=("torch", "transformers", "vllm"))) == []


def test_without_a_gpu_it_says_why(tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["--out", str(out)], [a_part("pass", "pass")], a_part("machine", "machine:0")) == 2
    said = capsys.readouterr().err
    assert "somebody took it. --device cpu runs the same code" in said
    assert not (out / "report.md").exists()


def test_without_a_machine_there_is_nothing_to_do(tmp_path, capsys):
    parts = [a_part("pass", "pass")]
    machine = a_part("machine", "raise")
    assert main(["--out", str(tmp_path)], parts, machine) == 1
    assert "RuntimeError: no kernel image" in (tmp_path / "report.md").read_text()
    machine = a_part("machine", "machine:1", needs=("no_such_package",))
    assert main(["--out", str(tmp_path)], parts, machine) == 1
    assert "needs no_such_package (not installed)" in capsys.readouterr().err


def test_chosen_parts_within_the_minutes(tmp_path):
    parts = [a_part("pass", "pass"), a_part("raise", "raise")]
    code, found, _ = check(tmp_path, "--parts", "pass", parts=parts, gpus=1)
    assert code == 0
    assert list(found) == ["machine", "pass"]
    _, found, _ = check(tmp_path, "--minutes", "0.05", parts=parts, gpus=1)
    assert found["raise"]["state"] == "not run"
    assert found["raise"]["reason"] == "the 0.05 minutes are over: --minutes gives more"
    with pytest.raises(SystemExit) as ended:
        main(["--parts", "no_such_part"], parts)
    assert ended.value.code == 2


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "x")], [], a_part("machine", "machine:1")) == 2
    assert "give --out FOLDER" in capsys.readouterr().err


def test_ctrl_c_ends_the_part_and_leaves_a_report(tmp_path):
    daemon = tmp_path / "daemon"
    program = f"""
import sys
from gpu_check import runner
from gpu_check.__main__ import main
from test_gpu_check import a_part
runner._LEAVE_SECONDS = 0.5
parts = [a_part("pass", "pass"), a_part("hang", "hang:{daemon}"), a_part("raise", "raise")]
sys.exit(main(["--out", {str(tmp_path)!r}], parts, a_part("machine", "machine:1")))
"""
    folders = os.pathsep.join(map(str, [*FOLDERS, Path(__file__).parent]))
    checking = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": folders}
    )
    for _ in range(600):
        if daemon.exists() and daemon.read_text():
            break
        time.sleep(0.1)
    checking.send_signal(signal.SIGINT)
    assert checking.wait(30) == 130
    states = [own["state"] for own in json.loads((tmp_path / "report.json").read_text())["parts"]]
    assert states == ["passed", "passed", "stopped", "stopped"]
    assert not _lives(int(daemon.read_text()))


def test_every_part_is_there_and_says_what_it_needs():
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in (MACHINE, *PARTS):
        spec = find_spec(part.module)
        assert spec is not None, part.module
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        run = next(s for s in tree.body if isinstance(s, ast.FunctionDef) and s.name == "run")
        assert [a.arg for a in run.args.args] == ["findings", "device", "argument"]
        engines = {"deepspeed", "vllm", "ray", "omegaconf", "transformers"} - set(part.needs)
        imported = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not {name.split(".")[0] for name in imported} & engines, part.name


def test_pytorch_and_transformers_are_enough_for_the_first_parts():
    """None of them imports a package that it does not name."""
    modules = sorted({p.module for p in PARTS if set(p.needs) <= {"torch", "transformers"}})
    assert len(modules) >= 4
    # The trainer needs no Ray either, but for its configuration.
    modules.append("actors.trainer.trainer")
    blocked = ["ray", "vllm", "psutil", "rich", "pyarrow", "datasets"]
    program = f"import sys; sys.modules |= dict.fromkeys({blocked})\n"
    program += "from importlib import import_module as get\n"
    program += f"for name in {modules[:-1]}:\n    sys.modules['omegaconf'] = None; get(name)\n"
    program += f"del sys.modules['omegaconf']; get({modules[-1]!r})\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _lives(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_page_has_every_part():
    page = (ROOT / "docs" / "gpu.md").read_text()
    named = [f"`{part.name}`" for part in (MACHINE, *PARTS)]
    assert [name for name in named if name not in page] == ["`zero_1`", "`zero_2`"]


def test_the_script_says_why_it_cannot_begin(tmp_path):
    def begin(python: str, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / "gpu_check.sh"), *arguments],
            env={**os.environ, "PYTHON": python},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = begin("/no/such/python")
    assert code == 2
    assert "no /no/such/python found: activate an environment, or set PYTHON" in said
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    code, said = begin(str(old))
    assert code == 2
    assert "is Python 3.8.1, and opd-ray needs Python 3.11 or newer" in said
    code, said = begin(sys.executable, "--help")
    assert code == 0
    assert "packed_attention" in said


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", short_run.KINDS)
def test_the_short_runs_are_legal(kind, device):
    config = load_config("demo", short_run.keys_of(kind, device))
    check_config(config)
    divergence_prompts([], config.eval.kl_prompts)  # none are asked for
    assert not config.eval.teacher_accuracy
