"""What a loss from few tokens sees of the exact one; writes results/loss_support.md.

    python benchmarks/loss_support.py /data/gsm8k_train.jsonl [--prompts 32] [--rows 1000]

`loss.support`: the teacher's k likeliest tokens, the student's K, or both, and one bucket for all
others; k = K. Each against the divergence over the whole vocabulary, in float32, on

- the SmolLM2 pair (`opd-ray fetch-smollm2`): what its student samples at temperature 1 in answer
  to problems of GSM8K (a JSONL file with a column `prompt`);
- a generated pair with V = 151,936, as no such model comes without a hub. Rows of student logits
  are random projections of a spread that is log-normal from row to row (median 8), so that
  probabilities fall off as a power of their rank. The teacher's last hidden states are the
  student's plus noise of a size that is gamma-distributed from row to row (mean 0.3 of theirs), and
  every weight of its head differs by a normal noise of 0.2 of its size.

Row sets, by exact scores: all; those that soft_or keeps at rho = 0.5; the quadrant Q3, of low
entropy and high divergence (cuts at the medians), where the student is sure and wrong.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from page import publish
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.teacher.support import signal_of
from opd_ray.batching.alignment import predicting_positions
from opd_ray.config.choices import Support
from opd_ray.divergence import HiddenTarget, Target, TopKTarget, exact_scores, linear_divergence
from opd_ray.models.pairs.smollm2 import pair_folder
from opd_ray.tip import TipFilter, TipSettings, TokenScores
from opd_ray.types import NO_TOKEN, Divergence, ScoreRequest, TeacherAnswer, TopK, TopKSignal

RESULTS = Path(__file__).parent / "results" / "loss_support.md"
WIDTHS = (8, 16, 32, 64)
NEW_TOKENS = 80
VOCAB, HIDDEN = 151_936, 96
CHUNK = 128  # rows whose logits exist at once

INTRO = """# What a loss from few tokens sees

Made by `python benchmarks/loss_support.py gsm8k_train.jsonl {command}`.
Reverse KL unless it says otherwise; float32. `bytes a token`: of the signal, for each token trained
on. `tokens named`: distinct ones, mean. `seen`: sum of the divergences over sum of the exact ones.
`cosine`: of the gradient with that of the exact divergence; on the last hidden states mean over
rows, on the head that of the whole sum. `all`, `kept`, `Q3`: all rows; those that soft_or keeps at
rho = 0.5; those of low entropy and high divergence (cuts at the medians), all by exact scores. The
generated pair has random weights: student logits of a log-normal spread, a teacher whose hidden
states and head differ by noise.
"""


@dataclass(frozen=True)
class Pair:
    """What both models say before each of N tokens."""

    title: str
    lengths_R: np.ndarray
    hidden_ND: Tensor  # the student's
    head_VD: Tensor
    teacher: HiddenTarget
    sampled_N: Tensor


@torch.no_grad()
def smollm2(data: Path, prompts: int) -> Pair:
    """Responses of the student, read by both models."""
    folder = pair_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for name in ("student", "teacher")
    )
    with data.open(encoding="utf-8") as lines:
        problems = [json.loads(line)["prompt"] for line in islice(lines, prompts)]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], tokenize=False, add_generation_prompt=True
        )
        for problem in problems
    ]
    batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(0)
    written = student.generate(
        **batch, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=1.0, top_p=1.0, top_k=0
    )[:, batch["input_ids"].shape[1] :]
    states: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    sampled = []
    for ids, mask, response in zip(
        batch["input_ids"], batch["attention_mask"], written, strict=True
    ):
        ends = (response == tokenizer.eos_token_id).nonzero()
        response = response[: int(ends[0]) + 1] if len(ends) else response
        prompt = ids[mask.bool()]
        text = torch.cat((prompt, response))[None]
        at = torch.as_tensor(predicting_positions(len(prompt), np.arange(len(response))))
        for name, model in (("student", student), ("teacher", teacher)):
            states[name].append(model.get_decoder()(text).last_hidden_state[0, at])
        sampled.append(response)
    heads = [model.get_output_embeddings().weight.detach() for model in (student, teacher)]
    return Pair(
        "SmolLM2 pair, responses sampled by its student",
        np.array([len(response) for response in sampled]),
        torch.cat(states["student"]),
        heads[0],
        HiddenTarget(torch.cat(states["teacher"]), heads[1]),
        torch.cat(sampled),
    )


def generated(rows: int) -> Pair:
    """The pair of random weights, in rollouts of 250 tokens."""
    draw, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    head_VD = normal(VOCAB, HIDDEN) / HIDDEN**0.5
    spread_N1 = torch.tensor(8.0 * rng.lognormal(0.0, 0.3, (rows, 1)), dtype=torch.float32)
    turned_N1 = torch.tensor(0.3 * rng.gamma(0.7, 1 / 0.7, (rows, 1)), dtype=torch.float32)
    hidden_ND = spread_N1 * normal(rows, HIDDEN)
    teacher_ND = hidden_ND + spread_N1 * turned_N1 * normal(rows, HIDDEN)
    teacher_VD = head_VD + 0.2 * normal(VOCAB, HIDDEN) / HIDDEN**0.5
    sampled = [
        torch.multinomial((part @ head_VD.T).softmax(1), 1, generator=draw)[:, 0]
        for part in hidden_ND.split(CHUNK)
    ]
    lengths = [len(part) for part in hidden_ND.split(250)]
    return Pair(
        "Generated pair",
        np.array(lengths),
        hidden_ND,
        head_VD,
        HiddenTarget(teacher_ND, teacher_VD),
        torch.cat(sampled),
    )


@dataclass(frozen=True)
class Known:
    """What of both distributions the narrow losses are made of: the widest top-k of each."""

    student: TopK
    teacher: TopK
    at_student_NK: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, pair: Pair) -> Known:
        columns: list[list[Tensor]] = []
        for rows in torch.arange(len(pair.hidden_ND)).split(CHUNK):
            log_p = (pair.hidden_ND[rows] @ pair.head_VD.T).log_softmax(1)
            log_q = (pair.teacher.hidden_ND[rows] @ pair.teacher.head_VD.T).log_softmax(1)
            own, other = log_p.topk(max(WIDTHS)), log_q.topk(max(WIDTHS))
            columns.append([own.indices.int(), own.values, other.indices.int(), other.values])
            columns[-1].append(log_q.gather(1, own.indices))
        found = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
        return cls(TopK(found[0], found[1]), TopK(found[2], found[3]), found[4])

    def target(self, support: Support, width: int) -> TopKTarget:
        """As a teacher's process makes it of an answer."""
        top = TopK(self.student.ids[:, :width], self.student.logprobs[:, :width])
        rows = len(top.ids)
        request = ScoreRequest("", np.zeros(1, np.int32), np.zeros(rows, np.int32), top)
        answer = TeacherAnswer(
            "",
            np.zeros(rows, np.float32),
            self.at_student_NK[:, :width],
            TopKSignal(self.teacher.ids[:, :width], self.teacher.logprobs[:, :width]),
        )
        signal = signal_of("teacher", request, answer, support)
        assert isinstance(signal, TopKSignal)
        logprobs_NW = torch.from_numpy(np.ascontiguousarray(signal.logprobs))
        return TopKTarget(torch.from_numpy(signal.ids.astype(np.int64)), logprobs_NW)


@dataclass(frozen=True)
class Seen:
    """A loss on a set of rows."""

    value: float  # sum of the divergences, nats
    hidden_nD: Tensor  # its gradient on each row's last hidden state
    head: Tensor  # and on the head, flat


def seen(pair: Pair, target: Target, rows: Tensor) -> Seen:
    """Reverse KL with its gradients."""
    hidden_nD = pair.hidden_ND[rows].clone().requires_grad_()
    head_VD = pair.head_VD.clone().requires_grad_()
    output = linear_divergence(hidden_nD, head_VD, part_of(target, rows))
    output.loss.backward()
    assert hidden_nD.grad is not None
    assert head_VD.grad is not None
    return Seen(output.loss.item(), hidden_nD.grad, head_VD.grad.flatten())


def part_of(target: Target, rows: Tensor) -> Target:
    """Those rows of it."""
    if isinstance(target, TopKTarget):
        return TopKTarget(target.ids_Nk[rows], target.logprobs_Nk[rows])
    assert isinstance(target, HiddenTarget)
    return HiddenTarget(target.hidden_ND[rows], target.head_VD)


def row_sets(pair: Pair) -> tuple[dict[str, Tensor], str]:
    """Places of the rows of each set; and a line that describes all rows."""
    exact = exact_scores(pair.hidden_ND, pair.head_VD, pair.teacher, sampled_ids_N=pair.sampled_N)
    entropy_N, reverse_N = exact.entropy_N.numpy(), exact.reverse_kl_N.numpy()
    scores = TokenScores(
        lengths_R=pair.lengths_R,
        response_mask_N=np.ones(len(entropy_N), dtype=bool),
        vocab_size=len(pair.head_VD),
        entropy_N=entropy_N,
        reverse_kl_N=reverse_N,
    )
    tip = TipFilter(TipSettings(rule="soft_or", rho=0.5, overlap=False))
    weights_N = tip.select(scores, np.arange(len(pair.lengths_R)), 0).weights_N
    sure_N = (entropy_N <= np.median(entropy_N)) & (reverse_N > np.median(reverse_N))
    sets = {"all": np.ones(len(entropy_N), bool), "kept": weights_N > 0, "Q3": sure_N}
    line = (
        f"V = {len(pair.head_VD):,}; {len(entropy_N):,} tokens in {len(pair.lengths_R)} rollouts, "
        f"{int(sets['kept'].sum()):,} kept, {int(sure_N.sum()):,} in Q3; mean entropy "
        f"{entropy_N.mean():.2f} nats; mean reverse KL {reverse_N.mean():.3f} nats, "
        f"{reverse_N[sure_N].mean():.3f} in Q3."
    )
    return {name: torch.from_numpy(np.flatnonzero(chosen)) for name, chosen in sets.items()}, line


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over rows."""
    return float(torch.cosine_similarity(one, other, dim=-1).mean())


def tables(pair: Pair) -> list[str]:
    """Both tables of one pair, with its heading."""
    sets, line = row_sets(pair)
    known = Known.of(pair)
    exact = {name: seen(pair, pair.teacher, rows) for name, rows in sets.items()}
    wide = {kind: total(pair, pair.teacher, kind) for kind in Divergence}
    lines = [
        f"## {pair.title}",
        "",
        line,
        "",
        "| k = K | support | bytes a token | tokens named | seen: all / kept / Q3 "
        "| cosine, hidden rows: all / kept / Q3 | cosine, head: all / kept / Q3 "
        "| seen: forward KL / JSD |",
        "|---:|---|---:|---:|---|---|---|---|",
    ]
    for width in WIDTHS:
        for support in Support:
            target = known.target(support, width)
            found = {name: seen(pair, target, rows) for name, rows in sets.items()}
            shares = [found[name].value / exact[name].value for name in sets]
            hidden = [cosine(found[name].hidden_nD, exact[name].hidden_nD) for name in sets]
            head = [cosine(found[name].head, exact[name].head) for name in sets]
            others = [
                total(pair, target, kind) / wide[kind]
                for kind in (Divergence.forward_kl, Divergence.jsd)
            ]
            named = (target.ids_Nk != NO_TOKEN).sum(1).float().mean().item()
            cells = [
                str(width),
                support.value,
                str(8 * target.ids_Nk.shape[1]),
                f"{named:.1f}",
                *(" / ".join(f"{v:.2f}" for v in part) for part in (shares, hidden, head, others)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return [*lines, ""]


@torch.no_grad()
def total(pair: Pair, target: Target, kind: Divergence) -> float:
    """Sum of a divergence over all rows."""
    return linear_divergence(pair.hidden_ND, pair.head_VD, target, kind=kind).loss.item()


def main() -> None:
    """Measure both pairs, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="GSM8K problems: JSONL with a column prompt")
    parser.add_argument("--prompts", type=int, default=32, help="problems that are answered")
    parser.add_argument("--rows", type=int, default=1000, help="tokens of the generated pair")
    arguments = parser.parse_args()
    # Nothing is timed here, and on a busy machine threads of small products wait for each other.
    torch.set_num_threads(1)
    command = f"--prompts {arguments.prompts} --rows {arguments.rows}"
    text = "\n".join(
        [
            INTRO.format(command=command),
            *tables(smollm2(arguments.data, arguments.prompts)),
            *tables(generated(arguments.rows)),
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
