"""The command line: what reaches the commands, exit codes, messages, and import weight."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config, to_yaml
from opd_ray.errors import ConfigError, RunError
from opd_ray.output.checkpoint import CheckpointStore, RunState

MINIMAL = "student: {path: s}\nteacher: {path: t}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for the modules that run a job, whose import takes seconds; records all calls."""
    module = types.ModuleType("opd_ray.coordinator.run")
    module.calls = []  # type: ignore[attr-defined]

    def record(name: str, result: int) -> Callable[..., int]:
        def call(*args: Any) -> int:
            module.calls.append((name, *args))  # type: ignore[attr-defined]
            return result

        return call

    for name, result in (("train", 130), ("evaluate", 0), ("export", 0)):
        setattr(module, name, record(name, result))
    for place in ("coordinator.run", "evaluation.run"):
        monkeypatch.setitem(sys.modules, f"opd_ray.{place}", module)
    monkeypatch.setattr("opd_ray.cli.export.run", module.export)
    return module


def test_train_passes_the_config_and_returns_its_code(
    config_file: Path, run_module: types.ModuleType
) -> None:
    # Overrides may stand before and after options.
    arguments = ["train", "run.steps=3", "--config", str(config_file), "trainer.ranks=2"]
    assert main(arguments) == 130
    ((name, config),) = run_module.calls
    assert (name, config.run.steps, config.trainer.ranks) == ("train", 3, 2)


def test_print_config_prints_and_does_not_run(
    config_file: Path,
    run_module: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = ["train", "--config", str(config_file), "--print-config", "tip.rho=0.25"]
    assert main(arguments) == 0
    assert run_module.calls == []
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(str(printed)) == load_config(str(config_file), ["tip.rho=0.25"])


def test_demo_is_the_config_of_that_name(run_module: types.ModuleType) -> None:
    assert main(["demo", "student.path=s", "teacher.path=t", "run.steps=2"]) == 130
    ((_, config),) = run_module.calls
    assert config.run.output_dir == "outputs/demo"
    assert config.run.steps == 2


def test_eval_takes_another_model(config_file: Path, run_module: types.ModuleType) -> None:
    assert main(["eval", "--config", str(config_file)]) == 0
    arguments = ["eval", "--config", str(config_file), "--model", "other", "--out", "found"]
    assert main(arguments) == 0
    (_, own, by_name), (_, other, somewhere) = run_module.calls
    assert (own.student.path, by_name) == ("s", Path("outputs/eval/s"))
    assert (other.student.path, somewhere) == ("other", Path("found"))


def test_export_passes_both_folders(run_module: types.ModuleType) -> None:
    assert main(["export", "--checkpoint", "a/b", "--out", "c"]) == 0
    ((name, args),) = run_module.calls
    assert (name, args.checkpoint, args.out) == ("export", Path("a/b"), Path("c"))


def test_make_pair_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import opd_ray.models.pairs.demo

    calls = []
    monkeypatch.setattr(
        opd_ray.models.pairs.demo,
        "make_pair",
        lambda out, **options: calls.append((out, options)),
        raising=False,
    )
    assert main(["make-pair", "--out", "pair", "--terms", "4", "--student-accuracy", "0.5"]) == 0
    ((out, options),) = calls
    assert out == Path("pair")
    assert options["terms"] == 4
    assert options["digits"] == 2
    assert options["student_accuracy"] == 0.5


def test_make_pair_refuses_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["make-pair", "--out", str(tmp_path), "--teacher-steps", "0"]) == 2
    assert "teacher_steps = 0" in capsys.readouterr().err


def test_bad_input_is_one_message_and_code_2(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(config_file), "tip.roh=1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "opd-ray: command line: unknown key tip.roh: did you mean tip.rho?\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "has_traceback"),
    [
        (ConfigError("wrong key"), 2, False),
        (RunError("rollout-0 died"), 1, False),
        (ValueError("a bug"), 1, True),
        (ZeroDivisionError("a bug"), 1, True),
        (KeyboardInterrupt(), 130, False),
    ],
)
def test_exit_codes(
    config_file: Path,
    run_module: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    has_traceback: bool,
) -> None:
    def fail(config: Any) -> int:
        raise error

    run_module.train = fail  # type: ignore[attr-defined]
    assert main(["train", "--config", str(config_file)]) == code
    assert ("Traceback" in capsys.readouterr().err) == has_traceback


def test_classes_of_our_own_are_known_wherever_they_are_defined(
    config_file: Path, run_module: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    from opd_ray.tip import MissingScoreError

    def fail(config: Any) -> int:
        raise MissingScoreError("jsd", "rule=x")

    run_module.train = fail  # type: ignore[attr-defined]
    assert main(["train", "--config", str(config_file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_traceback_on_request(
    by: str,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", "--config", str(config_file), "tip.roh=1"]
    if by == "flag":
        arguments.append("--traceback")
    else:
        monkeypatch.setenv("OPD_RAY_TRACEBACK", "1")
    assert main(arguments) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tain"],
        ["train"],
        ["train", "--config", "demo", "--no-such-option"],
        ["export", "--checkpoint", "a", "--out", "b", "trainer.ranks=2"],
        ["doctor", "--config", "demo", "--cpus", "many"],
    ],
)
def test_wrong_arguments_show_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: opd-ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *("train", "demo", "eval", "export", "prepare", "doctor", "make-pair"),
        *("check-teacher", "check-rule", "serve-teacher", "study", "fetch-smollm2"),
    ],
)
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"opd-ray {command} " in shown or f"opd-ray {command}\n" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "--config", "demo", "--print-config", "student.path=s", "teacher.path=t"],
    ],
)
def test_help_and_print_config_import_no_engine(arguments: list[str]) -> None:
    code = f"""
import sys
from opd_ray.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
heavy = {{"torch", "ray", "vllm", "transformers", "deepspeed"}} & set(sys.modules)
sys.exit(f"imported {{sorted(heavy)}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_and_module_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "opd_ray", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("opd-ray 0.")


def test_a_checkpoint_with_a_changed_file_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = RunState(3, 7, 10, {}, [[3, 2]], {"count": 2, "fingerprint": "ff"})

    def write(folder: str) -> None:
        (Path(folder) / "rank").write_bytes(b"weights")

    place = CheckpointStore(tmp_path, 1).save(state, write)
    (place / "trainer" / "rank").write_bytes(b"weightz")
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(place), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "step_00000003 is not whole: rank has the right size, but not the bytes" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("lora", "asked", "said"),
    [
        ({}, ["--adapter"], "--adapter: the student was trained whole"),
        ({"rank": 8, "base": "nf4"}, [], "--adapter is missing: with student.lora.base = nf4"),
    ],
)
def test_a_form_that_a_checkpoint_has_not_is_not_exported(
    lora: dict[str, Any],
    asked: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = RunState(3, 7, 10, {}, [[3, 2]], {"count": 2, "fingerprint": "ff"})

    def write(folder: str) -> None:
        (Path(folder) / "rank").write_bytes(b"weights")

    config = load_config("demo", [f"student.lora.{key}={value}" for key, value in lora.items()])
    place = CheckpointStore(tmp_path, 1, to_yaml(config)).save(state, write)
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(place), "--out", str(out), *asked]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
