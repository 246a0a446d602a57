"""A teacher of kind hf, with batches and packed texts, against its plain model over each text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.teacher.kinds.hf import HfTeacher
from gpu_check.findings import Findings
from gpu_check.inputs import Size, peak_gb, random_model, random_texts, timed
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import ScoreRequest, TeacherAnswer, TopK, TopKSignal

OF_STUDENT, OF_TEACHER = 4, 8  # tokens named a row
FLOAT32_LIMIT = 1e-4  # nats
TIMES_PLAIN, HALF_FLOOR = 2.0, 2e-2


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; of a random model, and of the demo's teacher."""
    size = Size.on(device)
    with tempfile.TemporaryDirectory() as folder:
        _one(findings, device, "random", random_model(Path(folder), size), size)
    demo = Size(128, 4, 24, 16, 24, size.texts, 0)
    _one(findings, device, "demo", pair_folder() / "teacher", demo)
    findings.figure("most memory", peak_gb(device), "GB")


def _one(findings: Findings, device: str, name: str, path: Path, size: Size) -> None:
    requests = _requests(size)
    truth = _plain(path, requests, torch.float64, device)
    for dtype in Dtype:
        teacher = HfTeacher(
            TeacherSettings(
                path=str(path),
                dtype=dtype,
                signal=SignalChoice.topk,
                topk=OF_TEACHER,
                batch_tokens=size.prompt + size.response * 4,
                gpus_per_replica=int(device == "cuda"),
            )
        )
        found = _read(teacher.score(requests))
        plain = _plain(path, requests, getattr(torch, dtype.value), device)
        for what, values in truth.items():
            limit = FLOAT32_LIMIT
            if dtype is not Dtype.float32:
                limit = max(TIMES_PLAIN * _apart(plain[what], values), HALF_FLOOR)
            findings.check(
                f"{name}, {dtype.value}: {what}, nats", _apart(found[what], values), limit
            )
        tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in requests)
        seconds = timed(device, lambda teacher=teacher: teacher.score(requests))
        findings.figure(f"{name}, {dtype.value}", tokens / seconds, "tokens/s")
        teacher.close()


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


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())
