"""Losses, their gradients and exact scores, against float64 and plain autograd."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_check.findings import Findings
from gpu_check.inputs import Size, distance, peak_gb, timed
from opd_ray.divergence import (
    ExactScores,
    HiddenTarget,
    SampledTarget,
    Target,
    TopKTarget,
    exact_scores,
    linear_divergence,
)
from opd_ray.types import Divergence

# Errors relative to the largest element. Half-precision ones are held against what plain autograd
# in the same format errs by.
FLOAT32_LIMIT = 2e-5
TIMES_PLAIN, HALF_FLOOR = 2.0, 2e-3
TOP_K = 16


@dataclass(frozen=True)
class Rows:
    """N rows of student and teacher, and both heads."""

    hidden_ND: Tensor
    head_VD: Tensor
    of_teacher_ND: Tensor
    its_head_VD: Tensor
    ids_N: Tensor

    @classmethod
    def random(cls, size: Size, device: str) -> Rows:
        torch.manual_seed(0)
        hidden, wide = size.hidden, size.hidden * 3 // 2

        def normal(rows: int, width: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(rows, width) * scale).to(device)

        return cls(
            normal(size.rows, hidden),
            normal(size.vocab, hidden, 2 * hidden**-0.5),
            normal(size.rows, wide),
            normal(size.vocab, wide, 2 * wide**-0.5),
            torch.randint(size.vocab, (size.rows,)).to(device),
        )

    def to(self, dtype: torch.dtype) -> Rows:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Rows(**{k: v if v.dtype == torch.int64 else v.to(dtype) for k, v in moved.items()})

    def logprobs(self) -> tuple[Tensor, Tensor]:
        """Of student and teacher, [N, V]; at least in float32."""
        log_p_NV = _wide(self.hidden_ND @ self.head_VD.T).log_softmax(-1)
        log_q_NV = _wide(self.of_teacher_ND @ self.its_head_VD.T).log_softmax(-1)
        return log_p_NV, log_q_NV.detach()


def run(findings: Findings, device: str, argument: str) -> None:
    """See above."""
    rows = Rows.random(Size.on(device), device)
    for dtype in (torch.float32, torch.bfloat16):
        given = rows.to(dtype)
        for kind in Divergence:
            _losses(findings, given, kind, "hidden")
        for name in ("topk", "sampled"):
            _losses(findings, given, Divergence.reverse_kl, name)
        _scores(findings, given)
        target = HiddenTarget(given.of_teacher_ND, given.its_head_VD)
        seconds = timed(device, lambda given=given, target=target: _ours(given, target))
        findings.figure(f"fused reverse KL, {_name(dtype)}", seconds * 1e3, "ms")
        plain = timed(device, lambda given=given: _plain(given, Divergence.reverse_kl, "hidden"))
        findings.figure(f"plain reverse KL, {_name(dtype)}", plain * 1e3, "ms")
    findings.figure("most memory", peak_gb(device), "GB")


def _losses(findings: Findings, rows: Rows, kind: Divergence, signal: str) -> None:
    """Values and gradients of one divergence."""
    dtype = rows.hidden_ND.dtype
    # What a teacher sends is the same for all three.
    _, sent_NV = rows.to(torch.float64).logprobs()
    exact = _plain(rows.to(torch.float64), kind, signal, sent_NV)
    ours = _ours(rows, _target(rows, signal, sent_NV), kind)
    plain = _plain(rows, kind, signal, sent_NV.float())
    for what, value, by_autograd, truth in zip(
        ("loss", "gradient of rows", "gradient of head"), ours, plain, exact, strict=True
    ):
        limit = FLOAT32_LIMIT
        if dtype != torch.float32:
            limit = max(TIMES_PLAIN * distance(by_autograd, truth), HALF_FLOOR)
        name = f"{kind.value}, {signal}, {_name(dtype)}: {what}"
        findings.check(name, distance(value, truth), limit)


def _scores(findings: Findings, rows: Rows) -> None:
    target = HiddenTarget(rows.of_teacher_ND, rows.its_head_VD)
    found = exact_scores(rows.hidden_ND, rows.head_VD, target, sampled_ids_N=rows.ids_N)
    truth, plain = _scores_by_definition(rows.to(torch.float64)), _scores_by_definition(rows)
    for name, values_N in truth.items():
        limit = FLOAT32_LIMIT
        if rows.hidden_ND.dtype != torch.float32:
            limit = max(TIMES_PLAIN * distance(plain[name], values_N), HALF_FLOOR)
        what = f"exact {name}, {_name(rows.hidden_ND.dtype)}"
        findings.check(what, distance(getattr(found, f"{name}_N"), values_N), limit)
    agree = (found.top1_agree_N == _top1_agrees(rows)).double().mean()
    findings.check(f"top-1 differs, {_name(rows.hidden_ND.dtype)}", 1 - float(agree), 0.05)


def _scores_by_definition(rows: Rows) -> dict[str, Tensor]:
    log_p_NV, log_q_NV = rows.logprobs()
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    log_m_NV = ((p_NV + q_NV) / 2).log()
    jsd_NV = (p_NV * (log_p_NV - log_m_NV) + q_NV * (log_q_NV - log_m_NV)) / 2
    at_N1 = rows.ids_N[:, None]
    found = {
        "entropy": -(p_NV * log_p_NV).sum(-1),
        "reverse_kl": (p_NV * (log_p_NV - log_q_NV)).sum(-1),
        "forward_kl": (q_NV * (log_q_NV - log_p_NV)).sum(-1),
        "jsd": jsd_NV.sum(-1),
        "logprob": log_p_NV.gather(1, at_N1)[:, 0],
        "teacher_logprob": log_q_NV.gather(1, at_N1)[:, 0],
        "teacher_entropy": -(q_NV * log_q_NV).sum(-1),
    }
    assert {f"{name}_N" for name in found} | {"top1_agree_N"} == {
        field.name for field in fields(ExactScores)
    }
    return found


def _top1_agrees(rows: Rows) -> Tensor:
    """Whether the likeliest tokens of student and teacher are the same, by plain products."""
    log_p_NV, log_q_NV = rows.to(torch.float64).logprobs()
    return log_p_NV.argmax(-1) == log_q_NV.argmax(-1)


def _target(rows: Rows, signal: str, sent_NV: Tensor) -> Target:
    if signal == "hidden":
        return HiddenTarget(rows.of_teacher_ND, rows.its_head_VD)
    if signal == "topk":
        top = sent_NV.topk(TOP_K)
        return TopKTarget(top.indices, top.values.float())
    return SampledTarget(rows.ids_N, sent_NV.gather(1, rows.ids_N[:, None])[:, 0].float())


def _ours(
    rows: Rows, target: Target, kind: Divergence = Divergence.reverse_kl
) -> tuple[Tensor, Tensor, Tensor]:
    hidden_ND, head_VD = _leaves(rows)
    loss = linear_divergence(hidden_ND, head_VD, target, kind=kind).loss
    loss.backward()
    assert hidden_ND.grad is not None
    assert head_VD.grad is not None
    return loss.detach(), hidden_ND.grad, head_VD.grad


def _plain(
    rows: Rows, kind: Divergence, signal: str, sent_NV: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by whole distributions and autograd, in the rows' own format."""
    hidden_ND, head_VD = _leaves(rows)
    student = Rows(hidden_ND, head_VD, rows.of_teacher_ND, rows.its_head_VD, rows.ids_N)
    log_p, log_q = student.logprobs()
    if signal != "hidden" and sent_NV is not None:
        log_q = sent_NV
    at_N1 = rows.ids_N[:, None]
    if signal == "sampled":
        # The score-function estimate: its derivative is what the loss has.
        log_p_N, log_q_N = log_p.gather(1, at_N1)[:, 0], log_q.gather(1, at_N1)[:, 0]
        ratio_N = (log_p_N - log_q_N).detach()
        value = ratio_N.sum()
        (ratio_N * log_p_N).sum().backward()
    else:
        if signal == "topk":
            ids_Nk = log_q.topk(TOP_K).indices
            log_p, log_q = _coarse(log_p, ids_Nk), _coarse(log_q, ids_Nk)
        value = _divergence(log_p, log_q, kind)
        value.backward()
    assert hidden_ND.grad is not None
    assert head_VD.grad is not None
    return value.detach(), hidden_ND.grad, head_VD.grad


def _divergence(log_p: Tensor, log_q: Tensor, kind: Divergence) -> Tensor:
    if kind is Divergence.reverse_kl:
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if kind is Divergence.forward_kl:
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    log_m = torch.stack([log_p, log_q]).logsumexp(0) - torch.log(torch.tensor(2.0)).item()
    of_p = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
    return (of_p + F.kl_div(log_m, log_q, reduction="sum", log_target=True)) / 2


def _coarse(log_p_NV: Tensor, ids_Nk: Tensor) -> Tensor:
    """The log-probabilities of those ids and of all others together."""
    rest_N1 = log_p_NV.scatter(1, ids_Nk, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p_NV.gather(1, ids_Nk), rest_N1], -1)


def _leaves(rows: Rows) -> tuple[Tensor, Tensor]:
    return (
        rows.hidden_ND.detach().clone().requires_grad_(),
        rows.head_VD.detach().clone().requires_grad_(),
    )


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
