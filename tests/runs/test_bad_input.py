"""Bad input ends a run with exit code 2 and says what to change, before Ray starts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import ray

from opd_ray.cli import main
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.output.folder import OutputFolder


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str) -> str:
    """The message of a run that must be refused."""
    code = main(["demo", f"run.output_dir={tmp_path / 'run'}", *overrides])
    assert code == 2
    assert not ray.is_initialized()
    return capsys.readouterr().err


def jsonl(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return f"data={{kind: jsonl, path: {path}, max_prompt_tokens: 32}}"


def row(prompt: str) -> str:
    return json.dumps({"prompt": prompt, "answer": "1"})


def test_missing_prompt_file(capsys, tmp_path):
    message = refused(capsys, tmp_path, "data.kind=jsonl", "data.path=no/such/file.jsonl")
    assert "data.path" in message
    assert "no/such/file.jsonl" in message


def test_empty_prompt_file(capsys, tmp_path):
    message = refused(capsys, tmp_path, jsonl(tmp_path))
    assert "prompts.jsonl" in message


def test_a_bad_json_line_is_named_by_file_and_line(capsys, tmp_path):
    message = refused(capsys, tmp_path, jsonl(tmp_path, row("1+1="), '{"prompt": "2+'))
    assert "prompts.jsonl, line 2" in message


def test_long_prompts_are_counted_and_refused(capsys, tmp_path):
    long = row("+".join(["12"] * 40) + "=")
    message = refused(capsys, tmp_path, jsonl(tmp_path, row("1+1="), long, row("2+2=")))
    assert "1 of 3 prompts are longer than data.max_prompt_tokens = 32" in message
    assert "over_length" in message


def test_tokenizers_that_differ(capsys, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(pair_folder() / "teacher", teacher)
    file = teacher / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    file.write_text(json.dumps(tokenizer))
    message = refused(capsys, tmp_path, f"teacher.path={teacher}")
    assert "do not pair" in message
    assert "'7' / '8'" in message


def test_vocabularies_of_different_size(capsys, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(pair_folder() / "teacher", teacher)
    file = teacher / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["?"] = len(tokenizer["model"]["vocab"])
    file.write_text(json.dumps(tokenizer))
    message = refused(capsys, tmp_path, f"teacher.path={teacher}")
    assert "'?'" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tip.rho=1.5", ["rho", "1.5", "[0, 1]"]),
        ("tip.rhoo=0.5", ["tip.rhoo", "tip.rho"]),
        ("rollout.record_topk=9999", ["rollout.record_topk", "9999"]),
        ("trainer.zero_stage=7", ["trainer.zero_stage", "7"]),
        ("student.path=no/such/model", ["no/such/model"]),
        ("rollout.max_new_tokens=500", ["max_new_tokens", "context_length"]),
    ],
)
def test_bad_values(capsys, tmp_path, override, words):
    message = refused(capsys, tmp_path, override)
    assert all(word in message for word in words), message


def test_a_folder_in_use(capsys, tmp_path):
    with OutputFolder(tmp_path / "run"):
        message = refused(capsys, tmp_path)
    assert f"in use by process {os.getpid()}" in message


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(capsys, tmp_path, f"run.output_dir={tmp_path / 'file' / 'run'}")
    assert "cannot be written" in message
