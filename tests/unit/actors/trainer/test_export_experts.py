"""Exports of a mixture of experts have the tensors that the student's folder has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_tiny_qwen3

from actors.trainer.checkpoint import Entry, write_entries, write_layout
from actors.trainer.export import export_checkpoint
from actors.trainer.student import Student, save_student, saved_names, student_files
from actors.weights.chunks import named_weights
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings
from opd_ray.models.weights import load_causal_lm


def written_by_a_trainer(student: Student, folder: Path) -> Path:
    """A checkpoint as a single rank writes it that has not stepped yet."""
    folder.mkdir(parents=True)
    named = dict(student.model.named_parameters())
    entries = [Entry(f"master:0:{name}", weight.flatten()) for name, weight in named.items()]
    write_entries(folder, 0, entries, dict.fromkeys(named, 0))
    write_layout(folder, {name: weight.shape for name, weight in named.items()}, {})
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_experts_are_written_one_by_one(tmp_path: Path, tied: bool) -> None:
    base = make_tiny_qwen3(tmp_path / "base", experts=4, tied=tied)
    given = load_file(base / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in given
    settings = StudentSettings(path=str(base))
    # transformers joins the experts of a layer as it loads them.
    student = Student(load_causal_lm(str(base), dtype=torch.float32))
    assert "model.model.layers.1.mlp.experts.down_proj" in student.state_dict()

    checkpoint = written_by_a_trainer(student, tmp_path / "checkpoint")
    trainer = TrainerSettings(dtype=Dtype.float32)
    export_checkpoint(checkpoint, settings, trainer, tmp_path / "exported", base)
    names = saved_names(student.model)
    state = {name: tensor for name, tensor in named_weights(student.model) if name in names}
    save_student(student.model, student_files(settings), state, str(tmp_path / "of_the_run"))

    for folder in ("exported", "of_the_run"):
        found = load_file(tmp_path / folder / "model.safetensors")
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name]) for name in given)


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    base = make_tiny_qwen3(tmp_path / "base")
    files = student_files(StudentSettings(path=str(base)))
    model = load_causal_lm(str(base), dtype=torch.float32)
    before = os.umask(0o022)
    try:
        save_student(model, files, dict(named_weights(model)), str(tmp_path / "exported"))
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "exported").iterdir()}
    assert modes["model.safetensors"] == 0o644
    assert set(modes.values()) == {0o644}
