"""Files of recorded answers: what is read, and what is damaged, foreign or half written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from costly_teacher import REQUESTS, Cache, Costly, D, V, cached_teacher, same
from safetensors.numpy import load_file, save_file

from actors.teacher.protocol import TeacherError
from opd_ray.config.choices import SignalChoice


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return partial(cached_teacher, tmp_path)


def test_what_a_crash_left_behind_is_not_read(cache: Cache, tmp_path: Path) -> None:
    cache("record", Costly).score(REQUESTS)
    (tmp_path / ".0123.part").write_bytes(b"half of a file")
    assert len(cache("replay").score(REQUESTS)) == 6


def answer_file(folder: Path) -> Path:
    [path] = folder.glob("answers-*.safetensors")
    return path


def test_a_truncated_file_is_named(cache: Cache, tmp_path: Path) -> None:
    cache("record", Costly).score(REQUESTS)
    path = answer_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TeacherError, match=r"answers-\w+.safetensors: .* is damaged .*delete it"):
        cache("replay")


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_a_file_cut_short_anywhere_is_named(cache: Cache, tmp_path: Path, kept: int) -> None:
    cache("record", Costly).score(REQUESTS)
    path = answer_file(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TeacherError, match=r"answers-\w+.safetensors: .* is damaged .*delete it"):
        cache("replay")


@pytest.mark.parametrize("name", ["weight", "model.layers.0.weight"])
def test_a_foreign_file_is_named(cache: Cache, tmp_path: Path, name: str) -> None:
    cache("record", Costly).score(REQUESTS)
    save_file({name: np.zeros(3)}, tmp_path / "answers-0.safetensors")
    with pytest.raises(TeacherError, match=r"answers-0.safetensors: .* is no part of an answer"):
        cache("replay")


def test_an_answer_without_its_parts_is_named(cache: Cache, tmp_path: Path) -> None:
    cache("record", Costly).score(REQUESTS[:1])
    path = answer_file(tmp_path)
    save_file({name: v for name, v in load_file(path).items() if "logprob" not in name}, path)
    with pytest.raises(TeacherError, match=r"is damaged \(KeyError\('signal.logprobs'\)\)"):
        cache("replay").score(REQUESTS[:1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "teacher.json: not a record of a teacher .*record anew"),
        ("[]", "teacher.json: not a record of a teacher .it needs context_length, dtype, "),
        (
            '{"kind": "class", "dtype": "float32"}',
            "it needs context_length, dtype, hidden_size, kind",
        ),
    ],
)
def test_a_record_that_is_none_is_refused(
    cache: Cache, tmp_path: Path, content: str, said: str
) -> None:
    cache("record", Costly).score(REQUESTS)
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(TeacherError, match=said):
        cache("replay")


def test_a_folder_whose_files_have_checksums_is_read(cache: Cache, tmp_path: Path) -> None:
    expected = cache("record", Costly).score(REQUESTS)
    path = answer_file(tmp_path)
    keys = {name.partition(".")[0] for name in load_file(path)}
    save_file(load_file(path), path, metadata=dict.fromkeys(keys, "0123456789abcdef"))
    assert json.loads((tmp_path / "teacher.json").read_text()) == {
        "kind": "class",
        "name": "costly",
        "dtype": "float32",
        "weights": None,
        "vocab_size": V,
        "context_length": 64,
        "hidden_size": D,
        "tokenizer_hash": None,
        "reads_student_logprobs": False,
    }
    for got, answer in zip(cache("replay").score(REQUESTS), expected, strict=True):
        same(got, answer)


def test_a_damaged_output_head_is_named(cache: Cache, tmp_path: Path) -> None:
    recorder = cache("record", Costly, signal=SignalChoice.hidden)
    recorder.output_head()
    path = tmp_path / "output_head.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TeacherError, match="output_head.safetensors: .* is damaged"):
        recorder.output_head()
