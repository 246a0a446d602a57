"""The packaged pair that calls tools, and the recipe that makes such pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_ray.config.load import load_config
from opd_ray.models.pairs import demo_tools
from opd_ray.models.pairs.demo import pair_folder as demo_folder
from opd_ray.models.pairs.demo_tools import make_tools_pair, pair_folder
from opd_ray.models.pairs.greedy_look_ups import greedy_success, heldout_problems
from opd_ray.models.pairs.tools_tokenizer import VOCABULARY, tools_tokenizer


def test_the_packaged_pair_is_small_and_documented() -> None:
    files = [path for path in pair_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert "opd-ray make-tools-pair --seed 0" in (pair_folder() / "README.md").read_text("utf-8")


def test_a_configuration_finds_the_packaged_pair() -> None:
    config = load_config("demo_tools")
    assert Path(config.student.path) == pair_folder() / "student"
    assert Path(str(config.teacher.path)) == pair_folder() / "teacher"


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_packaged_model_loads_by_the_auto_classes(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair_folder() / name)
    made = tools_tokenizer()
    assert tokenizer.get_vocab() == made.get_vocab()
    assert tokenizer.chat_template == made.chat_template
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    text = '<|assistant|>47 next H<tool_call>{"name": "look_up", "arguments": {"row": "H"}}'
    assert tokenizer(text)["input_ids"] == made(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(pair_folder() / name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.vocab_size == len(VOCABULARY)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)


def test_the_teacher_knows_and_the_student_can_learn() -> None:
    problems = heldout_problems(150, seed=7)
    success = {}
    for name in ("teacher", "student"):
        folder = pair_folder() / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        success[name] = greedy_success(model, AutoTokenizer.from_pretrained(folder), problems)
    assert success["teacher"] >= 0.9
    assert 0.1 <= success["student"] <= 0.6


def test_a_pair_is_made_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That training teaches, the packaged pair shows; here only its end is brought forward.
    monkeypatch.setattr(demo_tools, "greedy_success", lambda *_: 0.375)
    said: list[str] = []
    made = make_tools_pair(
        tmp_path / "pair", seed=3, teacher_steps=2, student_steps=1, batch_rows=2, say=said.append
    )
    readme = (tmp_path / "pair" / "README.md").read_text(encoding="utf-8")
    assert "opd-ray make-tools-pair --seed 3 --teacher-steps 2 --student-steps 1" in readme
    assert f"| student | {made.student.parameters:,} | 3 | 37.5% |" in readme
    assert "The student is the teacher after 2 steps" in readme
    assert any("held-out success" in line for line in said)
    for name in ("teacher", "student"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / name)


def test_models_begin_with_what_the_demos_student_knows() -> None:
    tokenizer = tools_tokenizer()
    begun = demo_tools._begun(tokenizer, seed=1)
    old = AutoModelForCausalLM.from_pretrained(demo_folder() / "student", dtype=torch.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    assert begun.state_dict()[name].equal(old.state_dict()[name])
    rows = begun.get_input_embeddings().weight
    assert rows is begun.get_output_embeddings().weight
    known = AutoTokenizer.from_pretrained(demo_folder() / "student")
    for token in ("0", "9", "+", "="):
        was = old.get_input_embeddings().weight[known.convert_tokens_to_ids(token)]
        assert rows[tokenizer.convert_tokens_to_ids(token)].equal(was)


@pytest.mark.parametrize("options", [{"teacher_steps": 0}, {"student_steps": -1}])
def test_impossible_recipes_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    ((name, count),) = options.items()
    with pytest.raises(ValueError, match=f"{name} = {count}: use at least 1"):
        make_tools_pair(tmp_path, **options)  # type: ignore[arg-type]
