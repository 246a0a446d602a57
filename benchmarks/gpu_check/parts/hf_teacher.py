"""A teacher of kind hf, with batches and packed texts, against its plain model over each text.

Once more after it has slept, as it does where roles take turns on a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import SleepingTeacher, Teacher
from gpu_check.findings import Findings
from gpu_check.inputs import Size, peak_gb, random_model, random_texts, timed
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import ScoreRequest, TeacherAnswer, TopK, TopKSignal

OF_STUDENT, OF_TEACHER = 4, 8  # tokens named a row
FLOAT32_LIMIT = 1e-4  # nats, of any number
# Of the mean error in bfloat16, beside that of the plain model in bfloat16.
TIMES_PLAIN, HALF_FLOOR = 1.5, 5e-3


class Sleeper(Teacher, SleepingTeacher, Protocol):
    """A teacher that can give its memory back."""


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; of a random model, and of the demo's teacher."""
    size = Size.on(device)
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(Path(folder), size)
        for dtype in Dtype:
            settings = settings_of(path, size, dtype, device)
            compare(findings, device, "random", HfTeacher(settings), settings, size)
    path, size = demo_teacher(size)
    for dtype in Dtype:
        settings = settings_of(path, size, dtype, device)
        compare(findings, device, "demo", HfTeacher(settings), settings, size)
    findings.figure("most memory", peak_gb(device), "GB")


def demo_teacher(size: Size) -> tuple[Path, Size]:
    """Where it is, and the size of texts for it."""
    return pair_folder() / "teacher", Size(128, 4, 24, 16, 24, size.texts, 0)


def settings_of(path: Path, size: Size, dtype: Dtype, device: str) -> TeacherSettings:
    """Of a teacher that reads in several batches."""
    return TeacherSettings(
        path=str(path),
        dtype=dtype,
        signal=SignalChoice.topk,
        topk=OF_TEACHER,
        batch_tokens=size.prompt + size.response * 4,
        gpus_per_replica=int(device == "cuda"),
        gpu_memory_utilization=0.3,
    )


def compare(
    findings: Findings,
    device: str,
    name: str,
    teacher: Sleeper,
    settings: TeacherSettings,
    size: Size,
) -> None:
    """What a teacher that can sleep says of random texts against its plain model; how fast."""
    path, dtype = Path(str(settings.path)), settings.dtype
    requests = _requests(size)
    found = _read(teacher.score(requests))
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in requests)
    seconds = timed(device, lambda: teacher.score(requests))
    findings.figure(f"{name}, {dtype.value}", tokens / seconds, "tokens/s")
    teacher.sleep()
    teacher.wake()
    again = _read(teacher.score(requests))
    teacher.close()
    truth = _plain(path, requests, torch.float64, device)
    plain = _plain(path, requests, getattr(torch, dtype.value), device)
    after_sleep = []
    for what, values in truth.items():
        apart, then = np.abs(found[what] - values), np.abs(again[what] - values)
        if dtype is Dtype.float32:
            limit = FLOAT32_LIMIT
            findings.check(f"{name}, {what}: most, nats", float(apart.max()), limit)
            after_sleep.append(then.max() / limit)
        else:
            usual = float(np.abs(plain[what] - values).mean())
            limit = max(TIMES_PLAIN * usual, HALF_FLOOR)
            findings.check(f"{name}, bfloat16, {what}: mean, nats", float(apart.mean()), limit)
            after_sleep.append(then.mean() / limit)
    worst = float(np.max(after_sleep))  # not Python's, which would lose a NaN
    findings.check(f"{name}, {dtype.value}: after sleep, of these limits", worst, 1.0)


def _requests(size: Size) -> list[ScoreRequest]:
    rng = np.random.default_rng(1)
    requests = []
    for number, (prompt, response) in enumerate(random_texts(size)):
        ids = np.argsort(rng.random((len(response), size.vocab)))[:, :OF_STUDENT].astype(np.int32)
        topk = TopK(ids, np.zeros(ids.shape, np.float32))
        requests.append(ScoreRequest(str(number), prompt, response, topk))
    return requests


def _read(answers: list[TeacherAnswer]) -> dict[str, np.ndarray]:
    """Answers as columns of all rows; the teacher's top-k as its log-probabilities alone."""
    found: dict[str, list[np.ndarray]] = {}
    for answer in answers:
        assert isinstance(answer.signal, TopKSignal)
        assert answer.entropy is not None
        for name, values in (
            ("logprob", answer.logprob),
            ("student's top-k", answer.at_student_topk),
            ("entropy", answer.entropy),
            ("teacher's top-k", answer.signal.logprobs),
        ):
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


@torch.no_grad()
def _plain(
    path: Path, requests: list[ScoreRequest], dtype: torch.dtype, device: str
) -> dict[str, np.ndarray]:
    """The same columns by transformers' own forward pass, text by text."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found: dict[str, list[torch.Tensor]] = {}
    for request in requests:
        text = np.concatenate((request.prompt_ids, request.response_ids))
        ids_1T = torch.from_numpy(text)[None].long().to(device)
        logits_mV = model(ids_1T).logits[0, len(request.prompt_ids) - 1 : -1]
        log_q_mV = logits_mV.to(wide).log_softmax(-1)
        at_m1 = torch.from_numpy(request.response_ids)[:, None].long().to(device)
        at_mK = torch.from_numpy(request.student_topk.ids).long().to(device)
        for name, values in (
            ("logprob", log_q_mV.gather(1, at_m1)[:, 0]),
            ("student's top-k", log_q_mV.gather(1, at_mK)),
            ("entropy", -(log_q_mV.exp() * log_q_mV).sum(-1)),
            ("teacher's top-k", log_q_mV.topk(OF_TEACHER).values),
        ):
            found.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}
