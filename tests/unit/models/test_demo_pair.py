"""The packaged demo pair, and the recipe that makes such pairs."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from opd_ray.config.load import load_config
from opd_ray.models.pairs import demo
from opd_ray.models.pairs.demo import (
    VOCABULARY,
    character_tokenizer,
    greedy_accuracy,
    make_pair,
    pair_folder,
)
from opd_ray.models.pairs.supervised import tiny_qwen3
from opd_ray.tasks.chain_sum import ChainSumGenerator

SPECIAL = {"<pad>": 0, "<eos>": 1, "<bos>": 2}


def test_tokenizer_has_a_multiple_of_8_ids_and_each_is_one_character() -> None:
    tokenizer = character_tokenizer()
    assert len(tokenizer) == len(VOCABULARY) == 24
    text = "".join(VOCABULARY[4:])
    ids = tokenizer(text)["input_ids"]
    assert ids == list(range(4, 24))
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [tokenizer(c)["input_ids"][0] for c in text]


def test_the_packaged_pair_is_small_and_documented() -> None:
    files = [path for path in pair_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    readme = (pair_folder() / "README.md").read_text(encoding="utf-8")
    assert "opd-ray make-pair --terms 3 --digits 2" in readme


def test_a_configuration_finds_the_packaged_pair() -> None:
    config = load_config("demo", ["teacher.path=${opd:demo_pair}/README.md"])
    assert Path(config.student.path) == pair_folder() / "student"
    assert Path(str(config.teacher.path)).is_file()


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_packaged_model_loads_by_the_auto_classes(name: str) -> None:
    folder = pair_folder() / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == character_tokenizer().get_vocab()
    assert tokenizer.chat_template is None
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL} == SPECIAL
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("1+1=\n")["input_ids"] == character_tokenizer()("1+1=\n")["input_ids"]
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen3"
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 2)
    assert config.vocab_size == len(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.generation_config.eos_token_id == 1
    assert model.generation_config.pad_token_id == 0


def test_the_teacher_knows_and_the_student_can_learn() -> None:
    problems = ChainSumGenerator(3, 2, "heldout", seed=1).take(150)
    accuracy = {}
    for name in ("teacher", "student"):
        folder = pair_folder() / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        accuracy[name] = greedy_accuracy(model, AutoTokenizer.from_pretrained(folder), problems)
    assert accuracy["teacher"] >= 0.96
    # Four standard errors of 150 problems round the 0.55 to 0.65 that is wanted.
    assert 0.39 <= accuracy["student"] <= 0.81


def test_a_pair_is_made_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That training teaches, the packaged pair shows; here only its end is brought forward.
    monkeypatch.setattr(demo, "greedy_accuracy", lambda *_: 0.375)
    said: list[str] = []
    made = make_pair(
        tmp_path / "pair",
        terms=2,
        digits=1,
        teacher_steps=2,
        student_steps=200,
        student_accuracy=0.3,
        batch_rows=8,
        say=said.append,
    )
    assert made.student.steps == 10
    assert made.student.parameters < made.teacher.parameters
    readme = (tmp_path / "pair" / "README.md").read_text(encoding="utf-8")
    assert "opd-ray make-pair --terms 2 --digits 1" in readme
    assert f"| student | {made.student.parameters:,} | 10 | 37.5% |" in readme
    assert any("held-out accuracy" in line for line in said)
    for name in ("teacher", "student"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / name)
        assert len(AutoTokenizer.from_pretrained(tmp_path / "pair" / name)) == 24


def test_a_student_that_does_not_get_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"student_accuracy = 1.0 within student_steps = 10"):
        make_pair(
            tmp_path,
            terms=2,
            digits=1,
            teacher_steps=1,
            student_steps=10,
            student_accuracy=1.0,
            batch_rows=8,
            say=lambda _: None,
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher_steps": 0}, "teacher_steps = 0"),
        ({"student_accuracy": 0.0}, "student_accuracy = 0.0"),
        ({"terms": 1}, "terms = 1"),
    ],
)
def test_impossible_recipes_are_refused(
    tmp_path: Path, options: dict[str, float], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        make_pair(tmp_path, **options)  # type: ignore[arg-type]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tokenizer = character_tokenizer()
    first = tiny_qwen3(tokenizer, 2, 64, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = (tiny_qwen3(tokenizer, 2, 64, seed=seed) for seed in (1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
