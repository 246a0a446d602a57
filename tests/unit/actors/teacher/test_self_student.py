"""The student as its own teacher: moving averages, whatever the format, saved and read again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.kinds.self_student import Follower
from actors.teacher.protocol import FollowingTeacher, TeacherError
from actors.weights.chunks import named_weights, pack, unpack
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import ScoreRequest, TopK

STUDENT = str(pair_folder() / "student")


def settings(**more) -> TeacherSettings:
    return TeacherSettings(kind="self", path=STUDENT, topk=4, batch_tokens=512, **more)


def moved(by: float) -> torch.nn.Module:
    """The student after a step that adds ``by`` to every weight."""
    model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    return model


def sent(model: torch.nn.Module):
    """The weights as they arrive from a trainer: in chunks, a tied head twice."""
    return [pair for chunk in pack(named_weights(model), 1 << 16) for pair in unpack(chunk)]


def request() -> ScoreRequest:
    ids = np.arange(3, 13, dtype=np.int32)
    student = TopK(np.tile(np.arange(4, dtype=np.int32), (6, 1)), np.zeros((6, 4), np.float32))
    return ScoreRequest("r", ids[:4], ids[4:], student)


def test_decay_0_is_the_student(tmp_path: Path) -> None:
    teacher = Follower(settings(follow_decay=0.0, signal=SignalChoice.hidden))
    assert isinstance(teacher, FollowingTeacher)
    model = moved(0.01)
    model.save_pretrained(tmp_path)
    (before,) = teacher.score([request()])
    teacher.follow(sent(model))
    (after,) = teacher.score([request()])
    for file in (pair_folder() / "student").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    fresh = HfTeacher(
        TeacherSettings(path=str(tmp_path), batch_tokens=512, signal=SignalChoice.hidden)
    )
    (expected,) = fresh.score([request()])
    assert np.abs(before.logprob - expected.logprob).max() > 1e-3
    np.testing.assert_array_equal(after.logprob, expected.logprob)
    np.testing.assert_array_equal(teacher.output_head()[0], fresh.output_head()[0])


@pytest.mark.parametrize("dtype", list(Dtype))
def test_two_steps_by_hand(dtype: Dtype, tmp_path: Path) -> None:
    """Weights w, then w + 1 and w + 3, decay 0.75: w + 0.25, then w + 0.9375."""
    teacher = Follower(settings(follow_decay=0.75, dtype=dtype))
    start = dict(moved(0.0).named_parameters())
    for by in (1.0, 3.0):
        teacher.follow(sent(moved(by)))
    file = str(tmp_path / "teacher.safetensors")
    teacher.save(file)
    saved = load_file(file)
    assert saved.keys() == start.keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, start[name].detach() + 0.9375, rtol=0, atol=1e-5)


def test_bfloat16_does_not_swallow_small_steps() -> None:
    """100 steps of a thousandth of the way: in bfloat16 each alone would be rounded away."""
    teacher = Follower(settings(follow_decay=0.999, dtype=Dtype.bfloat16))
    name, start = next(iter(moved(0.0).named_parameters()))
    there = sent(moved(0.1))
    for _ in range(100):
        teacher.follow(there)
    average = teacher._average[name]
    share = 1 - 0.999**100
    torch.testing.assert_close(average, start.detach() + 0.1 * share, rtol=0, atol=1e-4)
    torch.testing.assert_close(teacher._parameters[name].data, average.bfloat16())


def test_a_saved_average_goes_on(tmp_path: Path) -> None:
    whole, broken = (Follower(settings(follow_decay=0.9)) for _ in range(2))
    whole.follow(sent(moved(0.1)))
    whole.save(str(tmp_path / "t.safetensors"))
    broken.load(str(tmp_path / "t.safetensors"))
    for teacher in (whole, broken):
        teacher.follow(sent(moved(0.2)))
    (one,), (other,) = whole.score([request()]), broken.score([request()])
    np.testing.assert_array_equal(one.logprob, other.logprob)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="does not follow"):
        Follower(settings()).follow(sent(moved(0.0)))
    teacher = Follower(settings(follow_decay=0.5))
    with pytest.raises(TeacherError, match=r"new weights lack model\.embed_tokens\.weight"):
        teacher.follow([p for p in sent(moved(0.0)) if "embed" not in p[0]])
    with pytest.raises(TeacherError, match="not the same model"):
        teacher.follow([("model.embed_tokens.weight", torch.zeros(2, 2))])
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(TeacherError, match="another model"):
        teacher.load(str(tmp_path / "other.safetensors"))


def test_a_model_that_is_not_held_as_its_files_cannot_follow(monkeypatch) -> None:
    """The trainers send tensors as files hold them; such a teacher's own are others."""
    load = AutoModelForCausalLM.from_pretrained

    def joined(*args, **kwargs):
        model, differences = load(*args, **kwargs)
        model._weight_conversions = ["experts into one"]
        return model, differences

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", joined)
    Follower(settings())
    with pytest.raises(
        TeacherError, match=r"teacher\.follow_decay = 0\.5: .* cannot follow; set it"
    ):
        Follower(settings(follow_decay=0.5))


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
def test_a_follower_begins_anew(dtype: Dtype) -> None:
    teacher = Follower(settings(follow_decay=0.5, dtype=dtype))
    (before,) = teacher.score([request()])
    average = {name: tensor.clone() for name, tensor in teacher._average.items()}
    teacher.follow(sent(moved(0.01)))
    (after,) = teacher.score([request()])
    assert not np.array_equal(before.logprob, after.logprob)
    teacher.begin_anew()
    (anew,) = teacher.score([request()])
    np.testing.assert_array_equal(anew.logprob, before.logprob)
    for name, tensor in average.items():
        assert torch.equal(teacher._average[name], tensor), name
