"""`opd-ray eval`: from arguments to a configuration, and what is refused before Ray starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import EXCERPTS

from opd_ray.api import default_folder
from opd_ray.cli import main, make_parser
from opd_ray.cli.eval import evaluation_config
from opd_ray.config.choices import Dtype
from opd_ray.config.data import DataKind
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.config import check_evaluation

STUDENT = pair_folder() / "student"


def config_of(*arguments: str) -> Config:
    return evaluation_config(make_parser().parse_args(["eval", *arguments]))


def described(tmp_path: Path, **sizes: int) -> str:
    """The demo's student, as far as its config.json says with other sizes."""
    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder)
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**old, **sizes}))
    return str(folder)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """One with a context for long responses."""
    return described(tmp_path, max_position_embeddings=40960)


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


@pytest.mark.parametrize(
    ("context", "prompt", "response"),
    [(8192, 2048, 6144), (4096, 2048, 2048), (2048, 1024, 1024), (10240, 2048, 8192)],
)
def test_responses_are_as_long_as_a_short_context_allows(
    tmp_path: Path,
    context: int,
    prompt: int,
    response: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = described(tmp_path, max_position_embeddings=context)
    config = config_of("--model", model, "--tasks", "math500")
    check_evaluation(config)
    assert config.student.context_length == context
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens) == (prompt, response)
    assert (f"responses of up to {response:,}; " in capsys.readouterr().err) == (response < 8192)


def test_responses_that_were_asked_for_are_not_shortened(tmp_path: Path) -> None:
    model = described(tmp_path, max_position_embeddings=8192)
    arguments = ("--model", model, "--tasks", "math500", "--max-new-tokens")
    with pytest.raises(ConfigError, match="--max-new-tokens 8192: .* use at most 6144"):
        config_of(*arguments, "8192")
    config = config_of(*arguments, "7680", "data.max_prompt_tokens=512")
    check_evaluation(config)
    assert config.student.context_length == 8192


def test_a_text_of_full_length_fits_the_kv_cache(tmp_path: Path) -> None:
    """Sizes of Qwen3-4B: two tensors of 8 heads of 128 in 36 layers, float32."""
    sizes = {"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128}
    model = described(tmp_path, max_position_embeddings=40960, **sizes)
    config = config_of("--model", model, "--tasks", "math500")
    assert config.rollout.kv_cache_bytes == (10_240 + 32) * 2 * 36 * 8 * 128 * 4
    config = config_of("--model", model, "--tasks", "math500", "--max-new-tokens", "64")
    assert config.rollout.kv_cache_bytes == 1 << 30


def test_results_are_kept_in_a_folder_of_the_models_name() -> None:
    assert default_folder("Qwen/Qwen3-4B") == Path("outputs/eval/Qwen3-4B")
    assert default_folder("/models/student/") == Path("outputs/eval/student")


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
        (["--config", "demo", "--samples", "2", "--top-p", "1.5"], "top_p = 1.5"),
        (["--config", "demo", "--temperature", "0.6"], "none are asked for: give --samples too"),
        (["--config", "demo", "--top-p", "0.9"], "none are asked for: give --samples too"),
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
    from opd_ray.data.prompts import held_out_tasks

    class _Words:
        chat_template = bos_token_id = eos_token_id = None

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
