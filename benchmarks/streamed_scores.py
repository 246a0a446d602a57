"""Streamed scores against exact ones as K grows; writes results/streamed_scores.md.

    python benchmarks/streamed_scores.py [--rollouts 256] [--rows 2000]

Streamed: `streamed_scores` of the student's K most likely tokens and one tail bucket. Exact:
`exact_scores` over the whole vocabulary, as the trainer works them out. Both in float32, on the
same tokens of two pairs:

- the packaged demo pair (V = 24) on texts that its student samples at temperature 1;
- a synthetic pair (V = 49,152). Student logits are random projections whose spread is log-normal
  from row to row (median 8), which gives probabilities that fall off as a power of their rank;
  the teacher's are the student's plus independent noise on every token, of a spread that is
  gamma-distributed from row to row (mean 1). Noise on all tokens alike is hard on a top-K.

A token violates the bound if its streamed value is above the exact one by more than 2e-5 nats.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from page import publish
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_ray.batching.alignment import predicting_positions
from opd_ray.divergence import LogitsTarget, exact_scores
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.tasks.chain_sum import ChainSumGenerator
from opd_ray.tip import StreamedScores, TipFilter, TipSettings, TokenScores, streamed_scores
from opd_ray.types import TopK

RESULTS = Path(__file__).parent / "results" / "streamed_scores.md"
TOP_KS = (1, 2, 4, 8, 16, 24, 32, 64)
RHOS = (0.5, 0.2, 0.1)
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
TOLERANCE = 2e-5  # nats
SYNTHETIC_VOCAB, SYNTHETIC_HIDDEN, SYNTHETIC_ROLLOUT = 49_152, 64, 250


@dataclass(frozen=True)
class Text:
    """One rollout of m tokens: what predicts them."""

    hidden_mD: Tensor  # the student's
    teacher_logits_mV: Tensor
    response_ids_m: Tensor


@dataclass(frozen=True)
class Tokens:
    """All a pair's tokens: exact scores, and log-probabilities on the student's greatest top-K."""

    lengths_R: np.ndarray
    vocab_size: int
    exact: dict[str, np.ndarray]  # [N] each: the divergences and the entropy
    ids_NK: np.ndarray
    student_NK: np.ndarray
    teacher_NK: np.ndarray


@torch.no_grad()
def demo_texts(rollouts: int) -> tuple[Tensor, Iterator[Text]]:
    """The student's head and what both models say of texts sampled from the student."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(pair_folder() / "student")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(pair_folder() / name, dtype=torch.float32).eval()
        for name in ("student", "teacher")
    )
    problems = ChainSumGenerator(3, 2, "train", seed=0).take(rollouts)
    prompts = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
    written = student.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=40,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )[:, prompts["input_ids"].shape[1] :]

    @torch.no_grad()
    def texts() -> Iterator[Text]:
        for row, response in enumerate(written):
            prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
            ends = (response == tokenizer.eos_token_id).nonzero()
            response = response[: int(ends[0]) + 1] if len(ends) else response
            ids = torch.cat([prompt, response])[None]
            at = torch.as_tensor(predicting_positions(len(prompt), np.arange(len(response))))
            yield Text(
                student.base_model(ids).last_hidden_state[0, at],
                teacher(ids).logits[0, at],
                response,
            )

    return student.get_output_embeddings().weight.detach(), texts()


def synthetic_texts(rows: int) -> tuple[Tensor, Iterator[Text]]:
    """Random rows as the module describes them; a head and chunks of the size of a rollout."""
    draw = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    head_VD = torch.randn(SYNTHETIC_VOCAB, SYNTHETIC_HIDDEN, generator=draw)
    head_VD /= SYNTHETIC_HIDDEN**0.5

    def texts() -> Iterator[Text]:
        for first in range(0, rows, SYNTHETIC_ROLLOUT):
            count = min(SYNTHETIC_ROLLOUT, rows - first)
            spread_m1 = torch.tensor(8.0 * rng.lognormal(0.0, 0.3, (count, 1)), dtype=torch.float32)
            noise_m1 = torch.tensor(rng.gamma(0.7, 1 / 0.7, (count, 1)), dtype=torch.float32)
            hidden_mD = spread_m1 * torch.randn(count, SYNTHETIC_HIDDEN, generator=draw)
            logits_mV = hidden_mD @ head_VD.T
            teacher_mV = logits_mV + noise_m1 * torch.randn(logits_mV.shape, generator=draw)
            sampled_m = torch.multinomial(logits_mV.softmax(1), 1, generator=draw)[:, 0]
            yield Text(hidden_mD, teacher_mV, sampled_m)

    return head_VD, texts()


@torch.no_grad()
def score(head_VD: Tensor, texts: Iterator[Text]) -> Tokens:
    """Exact scores and the log-probabilities that streaming needs, text by text."""
    most = min(max(TOP_KS), len(head_VD))
    lengths, columns = [], []
    for text in texts:
        exact = exact_scores(
            text.hidden_mD,
            head_VD,
            LogitsTarget(text.teacher_logits_mV),
            sampled_ids_N=text.response_ids_m,
        )
        student_mK, ids_mK = (text.hidden_mD @ head_VD.T).log_softmax(1).topk(most)
        teacher_mK = text.teacher_logits_mV.log_softmax(1).gather(1, ids_mK)
        names = (*DIVERGENCES, "entropy")
        row = [getattr(exact, f"{name}_N") for name in names] + [ids_mK, student_mK, teacher_mK]
        columns.append([column.numpy() for column in row])
        lengths.append(len(text.response_ids_m))
    reverse, forward, jsd, entropy, ids, student, teacher = map(
        np.concatenate, zip(*columns, strict=True)
    )
    exact_N = {"reverse_kl": reverse, "forward_kl": forward, "jsd": jsd, "entropy": entropy}
    return Tokens(np.array(lengths), len(head_VD), exact_N, ids, student, teacher)


def streamed(tokens: Tokens, top_k: int) -> StreamedScores:
    """The streamed scores at K = ``top_k``."""
    student = TopK(tokens.ids_NK[:, :top_k], tokens.student_NK[:, :top_k])
    return streamed_scores(student, tokens.teacher_NK[:, :top_k])


def average_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[group_N]


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(average_ranks(a_N), average_ranks(b_N))[0, 1])


def kept(tokens: Tokens, divergence_N: np.ndarray, rho: float) -> np.ndarray:
    """What soft_or keeps of the tokens, [N] bool; the entropy is exact in both readings."""
    scores = TokenScores(
        lengths_R=tokens.lengths_R,
        response_mask_N=np.ones(len(divergence_N), dtype=bool),
        vocab_size=tokens.vocab_size,
        entropy_N=tokens.exact["entropy"],
        reverse_kl_N=divergence_N,
    )
    settings = TipSettings(rule="soft_or", rho=rho, overlap=False)
    return TipFilter(settings).select(scores, np.arange(len(tokens.lengths_R)), 0).weights_N > 0


def table(tokens: Tokens) -> list[str]:
    """One row for each K."""
    lines = [
        "| K | student's mass | violations, R / F / J | greatest excess "
        "| rank correlation, R / F / J | captured, R / F / J "
        f"| kept in common, rho = {' / '.join(map(str, RHOS))} |",
        "|---|---|---|---|---|---|---|",
    ]
    exact_kept = {rho: kept(tokens, tokens.exact["reverse_kl"], rho) for rho in RHOS}
    for top_k in (k for k in TOP_KS if k <= tokens.vocab_size):
        scores = streamed(tokens, top_k)
        pairs = [(getattr(scores, f"{name}_m"), tokens.exact[name]) for name in DIVERGENCES]
        excess = [low_N.astype(np.float64) - high_N for low_N, high_N in pairs]
        common = []
        for rho in RHOS:
            both_N = kept(tokens, scores.reverse_kl_m, rho) & exact_kept[rho]
            common.append(both_N.sum() / exact_kept[rho].sum())
        cells = [
            str(top_k),
            f"{np.exp(tokens.student_NK[:, :top_k]).sum(1).mean():.4f}",
            " / ".join(str(int((above_N > TOLERANCE).sum())) for above_N in excess),
            f"{max(above_N.max() for above_N in excess):.1e}",
            " / ".join(f"{spearman(*pair):.3f}" for pair in pairs),
            " / ".join(f"{low_N.sum() / high_N.sum():.3f}" for low_N, high_N in pairs),
            " / ".join(f"{share:.3f}" for share in common),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe(title: str, tokens: Tokens) -> str:
    """Heading and the size of what was scored."""
    entropy_N, reverse_N = tokens.exact["entropy"], tokens.exact["reverse_kl"]
    return (
        f"## {title}\n\nV = {tokens.vocab_size:,}; {len(entropy_N):,} tokens in "
        f"{len(tokens.lengths_R)} rollouts; mean entropy {entropy_N.mean():.2f} nats, mean "
        f"reverse KL {reverse_N.mean():.3f} nats (median {np.median(reverse_N):.2g}).\n"
    )


def main() -> None:
    """Score both pairs, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=256, help="texts of the demo pair")
    parser.add_argument("--rows", type=int, default=2000, help="tokens of the synthetic pair")
    arguments = parser.parse_args()
    # Nothing is timed here, and on a busy machine threads of small products wait for each other.
    torch.set_num_threads(1)
    demo = score(*demo_texts(arguments.rollouts))
    synthetic = score(*synthetic_texts(arguments.rows))
    text = "\n".join(
        [
            "# Streamed scores against exact ones",
            "",
            "Made by `python benchmarks/streamed_scores.py "
            f"--rollouts {arguments.rollouts} --rows {arguments.rows}`.",
            "R, F, J: reverse KL, forward KL, JSD. `student's mass`: mean probability of its own",
            f"top-K. `violations`: tokens whose streamed value is above the exact one by more than "
            f"{TOLERANCE:g}",
            "nats; `greatest excess`: the most by which it is, of all three. `captured`: sum of",
            "the streamed values over sum of the exact ones. `kept in common`: share of the tokens",
            "that soft_or keeps by exact scores which it also keeps by streamed ones (entropy is",
            "exact in both); two random choices would have rho in common.",
            "",
            describe("Demo pair, texts sampled by its student", demo),
            *table(demo),
            "",
            describe("Synthetic pair", synthetic),
            *table(synthetic),
            "",
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
