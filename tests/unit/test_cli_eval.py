"""`opd-ray eval`: from arguments to a configuration, and what is refused before Ray starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import EXCERPTS

from opd_ray.cli import main, make_parser
from opd_ray.cli.evaluation import evaluation_config
from opd_ray.config.check import check_evaluation
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import Config
from opd_ray.data.settings import DataKind
from opd_ray.demo import pair_folder
from opd_ray.errors import ConfigError

STUDENT = pair_folder() / "student"


def config_of(*arguments: str) -> Config:
    return evaluation_config(make_parser().parse_args(["eval", *arguments]))


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The demo's student with a context for long responses, as far as its config.json says."""
    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "max_position_embeddings": 40960}))
    return str(folder)


def test_names_alone_take_the_papers_settings(model: str) -> None:
    config = config_of("--model", model, "--tasks", "math500, aime24,aime24")
    check_evaluation(config)
    assert [task.name for task in config.eval.tasks] == ["math500", "aime24"]
    for task in config.eval.tasks:
        assert (task.samples, task.temperature, task.top_p, task.greedy) == (16, 1.0, 1.0, False)
        assert (task.task, task.problems) == ("math", None)
        assert (task.data.kind, task.data.path) == (DataKind.prepared, task.name)
        assert task.data.instruction.startswith("{prompt}\n")
        assert "\\boxed{}" in task.data.instruction
    assert config.rollout.max_new_tokens == 8192
    assert config.student.context_length == 2048 + 8192
    assert config.rollout.dtype is Dtype.bfloat16


def test_options_and_overrides(model: str) -> None:
    config = config_of(
        *("--model", model, "--tasks", "amc23", "--data", "some/folder", "--samples", "4"),
        *("--greedy", "--temperature", "0.6", "--top-p", "0.95", "--max-new-tokens", "100"),
        *("--problems", "7", "--actors", "3", "--gpus-per-actor", "2", "rollout.dtype=float32"),
        "data.chat_template_kwargs={enable_thinking: false}",
    )
    check_evaluation(config)
    (task,) = config.eval.tasks
    assert (task.greedy, task.samples, task.temperature, task.top_p) == (True, 4, 0.6, 0.95)
    assert (task.data.path, task.problems) == ("some/folder/amc23", 7)
    assert task.data.chat_template_kwargs == {"enable_thinking": False}
    assert config.student.context_length == 2148
    rollout = config.rollout
    assert (rollout.actors, rollout.gpus_per_actor, rollout.tensor_parallel_size) == (3, 2, 2)
    assert rollout.dtype is Dtype.float32
    (task,) = config_of("--model", model, "--tasks", "amc23", "--greedy").eval.tasks
    assert (task.greedy, task.samples) == (True, 0)


def test_a_configs_own_tasks_and_dress() -> None:
    config = config_of("--config", "demo", "--samples", "2", "--model", "other")
    (task,) = config.eval.tasks
    assert (task.name, task.greedy, task.samples) == ("heldout", False, 2)
    assert config.student.path == "other"
    (task,) = config_of("--config", "demo").eval.tasks
    assert (task.greedy, task.samples) == (True, 0)
    arguments = ("--config", "demo", "--tasks", "gsm8k", "data.system_prompt=Be brief.")
    (task,) = config_of(*arguments).eval.tasks
    assert task.data.system_prompt == "Be brief."
    assert "\\boxed{}" in task.data.instruction
    (task,) = config_of(*arguments, "data.instruction=Now {prompt}").eval.tasks
    assert task.data.instruction == "Now {prompt}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model and --tasks, or --config"),
        (["--model", "m"], "give --model and --tasks, or --config"),
        (["--config", "demo", "--data", "d"], "--data says where the sets of --tasks lie"),
        (["--config", "demo", "--tasks", "math50"], "--tasks 'math50': did you mean math500?"),
        (["--config", "demo", "eval.tasks=[]"], "eval.tasks is empty"),
        (["--config", "demo", "--samples", "0"], "greedy = false: nothing is asked"),
        (["--config", "demo", "--samples", "2", "--temperature", "0"], "temperature above 0"),
        (["--config", "demo", "--top-p", "1.5"], "top_p = 1.5"),
        (["--config", "demo", "--max-new-tokens", "500"], "together more than student.context_"),
        (["--model", "no/such/folder", "--tasks", "math500"], "no/such/folder"),
        (["--model", str(STUDENT), "--tasks", "math500", "rollout.roh=1"], "unknown key"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_set_that_is_not_prepared_is_named_with_the_remedy(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "sets")
    assert main(["eval", "--model", model, "--tasks", "aime24", "--data", folder]) == 2
    assert f"opd-ray prepare aime24 --out {folder}/aime24.jsonl" in capsys.readouterr().err


def test_a_folder_of_another_evaluation_is_refused_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps({"model": "another"}))
    assert main(["eval", "--config", "demo", "--out", str(out)]) == 2
    assert "model: another -> " in capsys.readouterr().err
    assert not ray.is_initialized()


def test_evaluating_needs_no_teacher() -> None:
    config = config_of("--config", "demo", "teacher.kind=class", "teacher.path=null")
    check_evaluation(config)
    with pytest.raises(ConfigError, match="record_topk = 64"):
        check_evaluation(config_of("--config", "demo", "rollout.record_topk=64"))


def test_excerpts_serve_as_a_prepared_set(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step up to the engine: the excerpts hold characters that the demo's tokenizer lacks."""
    from opd_ray.prompts import held_out_tasks

    class _Words:
        chat_template = None

        def __call__(
            self, texts: list[str], add_special_tokens: bool
        ) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    monkeypatch.setenv("OPD_RAY_DATA", str(tmp_path))
    arguments = ["prepare", "gsm8k_train", "--from", str(EXCERPTS / "gsm8k_train.jsonl")]
    assert main(arguments) == 0
    config = config_of("--model", model, "--tasks", "gsm8k_train")
    (task,) = held_out_tasks(config, _Words())  # type: ignore[arg-type]
    assert len(task.prompts) == 5
    assert [prompt.key for prompt in task.prompts] == [f"gsm8k_train-{n}" for n in range(5)]
    assert list(task.answers)[2:] == ["72", "10", "5"]
