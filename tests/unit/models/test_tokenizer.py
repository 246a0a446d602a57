"""Vocabulary size and ends of a model, from one place for every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import make_gapped_student
from transformers import AutoTokenizer

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.models.tokenizer import describe_model, vocabulary_size
from opd_ray.preflight.pairing import PairingError, check_pairings, check_student


@pytest.fixture
def gapped(tmp_path: Path) -> Path:
    return make_gapped_student(tmp_path / "gapped")


def config_of(student: Path, *overrides: str) -> Config:
    keys = [f"student.path={student}", f"teacher.path={student}", *overrides]
    return load_config("demo", keys)


def test_ids_without_tokens_count(gapped: Path) -> None:
    assert vocabulary_size(AutoTokenizer.from_pretrained(gapped)) == 31
    facts = describe_model(str(gapped))
    assert (facts.vocab_size, facts.eos_ids, len(facts.tokens)) == (31, (30,), 24)


def test_training_and_evaluation_go_by_the_same_size(gapped: Path) -> None:
    config = config_of(gapped)
    assert check_pairings(config).vocab_size == 31
    student = check_student(config)
    assert student.vocab_size == 31
    assert student.tokenizer.eos_token_id == 30


def test_padding_rows_are_not_recorded(gapped: Path) -> None:
    """The model has 32 rows, of which the last stands for no token."""
    check_student(config_of(gapped, "rollout.record_topk=31"))
    wide = config_of(gapped, "rollout.record_topk=32", "teacher.signal=topk", "teacher.topk=32")
    with pytest.raises(PairingError, match=r"^rollout\.record_topk = 32: above the 31 tokens"):
        check_student(wide)
    with pytest.raises(PairingError, match=r"\nteacher\.topk = 32: above the 31 tokens"):
        check_pairings(wide)
    unused = config_of(gapped, "teacher.signal=topk", "teacher.topk=32", "loss.support=student")
    check_pairings(unused)


def test_an_evaluation_needs_a_context_that_the_model_has(gapped: Path) -> None:
    config = config_of(gapped)
    longer = replace(config, student=replace(config.student, context_length=257))
    with pytest.raises(PairingError, match="context is 256 tokens, the run needs 257"):
        check_student(longer)


@pytest.mark.parametrize(
    ("generation", "in_config", "ends"),
    [
        ({"eos_token_id": [30, 18]}, 30, (18, 30)),
        ({"eos_token_id": 18}, 30, (18, 30)),
        ({"temperature": 0.6}, 18, (30,)),  # a file without ends: the config's are not asked
        (None, 18, (18, 30)),
        (None, [18, 5], (5, 18, 30)),
        (None, None, (30,)),
    ],
)
def test_ends(gapped: Path, generation: dict | None, in_config: object, ends: tuple) -> None:
    """The tokenizer's own, and those of the generation config; without one, of the config."""
    file = gapped / "generation_config.json"
    file.unlink()
    if generation is not None:
        file.write_text(json.dumps(generation))
    config = json.loads((gapped / "config.json").read_text())
    (gapped / "config.json").write_text(json.dumps(config | {"eos_token_id": in_config}))
    assert describe_model(str(gapped)).eos_ids == ends
