"""What published runs say of their stages, as speeds that a pipeline can be made of.

A profile has the lengths of responses and what a decode step, a scored token, a trained token, an
optimizer step and a weight update cost. ``source`` is where its figures were published,
``assumed`` what was not. ``Published`` holds the run's own placement and seconds: the profile has
to give them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, exp, log, sqrt

import numpy as np

# Two GPUs under one engine decode 1.62 times as fast as one, four 2.64 times.
SPLIT_EXPONENT = 0.7


@dataclass(frozen=True)
class Lengths:
    """Tokens of a response: log-normal, cut at the most that a run lets the student write."""

    median: float  # tokens
    sigma: float  # of the logarithm
    most: int  # tokens

    def draw(self, seed: int) -> int:
        """The length of the response with this seed, at least 1."""
        spread = np.random.default_rng(seed).standard_normal()
        return max(1, min(self.most, round(self.median * exp(self.sigma * spread))))

    @property
    def mean(self) -> float:
        """Tokens of a response on average, cut ones included."""
        at = (log(self.most / self.median)) / self.sigma
        below = self.median * exp(self.sigma**2 / 2) * _normal(at - self.sigma)
        return below + self.most * self.cut_share

    @property
    def cut_share(self) -> float:
        """Responses that come to the limit, of all."""
        return 1.0 - _normal(log(self.most / self.median) / self.sigma)


@dataclass(frozen=True)
class Published:
    """The run's own placement, and what it reports of it."""

    engines: int
    gpus_per_engine: int
    trainer_gpus: int
    writing_seconds: float  # from the first request to the last response of a step
    training_seconds: float  # of a step, without waiting and without the weights' way
    training_tokens: int  # of the texts, prompts included, that took so long


@dataclass(frozen=True)
class Profile:
    """Seconds of every stage of one published run."""

    name: str
    what: str  # models, machine, who ran it
    source: str
    assumed: tuple[str, ...]
    lengths: Lengths
    prompt_tokens: int
    prompts_per_step: int
    samples_per_prompt: int
    decode_gpus: int  # of the engine that the next two describe
    decode_seconds: float  # a decode step of one sequence alone
    crowding: float  # what each further sequence adds to a decode step, as a share of it
    teacher_tokens_per_second: float  # that a GPU of a teacher scores
    trainer_tokens_per_second: float  # that a GPU of the trainers reads, forward and backward
    optimizer_seconds: float
    sync_seconds: float
    published: Published

    @property
    def rollouts(self) -> int:
        """Of a step of the published run."""
        return self.prompts_per_step * self.samples_per_prompt

    def decode_step_seconds(self, running: int, gpus: int) -> float:
        """One token for each of ``running`` sequences, in an engine split over ``gpus``."""
        alone = self.decode_seconds * (self.decode_gpus / gpus) ** SPLIT_EXPONENT
        return alone * (1.0 + self.crowding * (running - 1))

    def scoring_seconds(self, tokens: float, gpus: int) -> float:
        """A replica's time for prompt and response tokens."""
        return tokens / (self.teacher_tokens_per_second * gpus)

    def reading_seconds(self, tokens: float, gpus: int) -> float:
        """Forward and backward pass over tokens that are shared out evenly; no optimizer step."""
        return tokens / (self.trainer_tokens_per_second * gpus)


def _normal(value: float) -> float:
    """The normal distribution function."""
    return (1.0 + erf(value / sqrt(2.0))) / 2.0


_OPD_BENCHMARK = "github.com/SemiAnalysisAI/opd-benchmark"

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="tip_b200",
            what="TIP's own recipe, Qwen3-8B to Qwen3-4B, not thinking, on 8 B200 in turns",
            source=(
                "github.com/XFDG/OPSD_OnPolicyDistillation: "
                "results/taihua-b200-optimized-20261003/B200_OPT_VS_BASELINE_AND_H200.md (128 "
                "responses a step of 1,960 tokens on average, at most 8,192; written in 31.29 s by "
                "4 engines of 2 GPUs) and results/optimization-20261001/profile-comparison.md "
                "(resident, second step, 242,776 response tokens on 8 GPUs: teacher 8.10 s, "
                "forward and backward 16.93 s, whole update 30.83 s of which 5.36 s score for the "
                "filter, with the weights' way 37.61 s)"
            ),
            assumed=(
                "the spread of the lengths (that of miles_b200)",
                "150 prompt tokens",
                "crowding 0.01",
                "all that is left of the update is the optimizer, all after it the weights' way",
            ),
            lengths=Lengths(median=1_495, sigma=0.767, most=8_192),
            prompt_tokens=150,
            prompts_per_step=8,
            samples_per_prompt=16,
            decode_gpus=2,
            decode_seconds=0.0037,
            crowding=0.01,
            teacher_tokens_per_second=4_043,
            trainer_tokens_per_second=1_934,
            optimizer_seconds=0.43,
            sync_seconds=6.78,
            published=Published(
                engines=4,
                gpus_per_engine=2,
                trainer_gpus=8,
                writing_seconds=31.29,
                training_seconds=17.36,
                training_tokens=261_976,
            ),
        ),
        Profile(
            name="miles_b200",
            what="miles, Qwen3-8B from two teachers of 30B and 32B, thinking, on 8 B200",
            source=(
                f"{_OPD_BENCHMARK}: benchmarks/mopd-b200-full/REPORT.md and results/summary.json "
                "(64 responses a step of 2,056 tokens on average, 0.1 % cut at 16,384; written in "
                "40.72 s by 4 engines of 1 GPU; teachers 1.66 s on 2 GPUs, training 5.50 s on 2 "
                "GPUs, weights 0.92 s; 2,205 tokens a text with its prompt)"
            ),
            assumed=(
                "log-normal lengths, their spread from the share that was cut",
                "crowding 0.01",
                "the optimizer's time is in that of the tokens",
            ),
            lengths=Lengths(median=1_531, sigma=0.767, most=16_384),
            prompt_tokens=149,
            prompts_per_step=16,
            samples_per_prompt=4,
            decode_gpus=1,
            decode_seconds=0.0040,
            crowding=0.01,
            teacher_tokens_per_second=42_500,
            trainer_tokens_per_second=12_830,
            optimizer_seconds=0.0,
            sync_seconds=0.92,
            published=Published(
                engines=4,
                gpus_per_engine=1,
                trainer_gpus=2,
                writing_seconds=40.72,
                training_seconds=5.50,
                training_tokens=141_134,
            ),
        ),
        Profile(
            name="slime_b200",
            what="slime, Qwen3.6-35B-A3B from a teacher of its size, thinking, on 16 B200",
            source=(
                f"{_OPD_BENCHMARK}: docs/CAESAR-OPD-2026-09-27.md and "
                "docs/caesar-opd-2026-09-27/data (128 responses a step; median 10,932, mean "
                "12,722, 4.56 % cut at 30,720; one response alone at 280 tokens/s; one rollout "
                "ahead: median step 197.2 s with 28.7 s of training on 8 GPUs and 2.87 s for the "
                "weights, so 194.3 s of writing by 3 engines of 2 GPUs; 13,117 tokens a text; the "
                "teacher's GPU 8.09 % busy at 6,524 tokens/s)"
            ),
            assumed=(
                "log-normal lengths, which meet median, mean and cut share at once",
                "crowding, so that writing takes what it took",
                "the optimizer's time is in that of the tokens",
                "the teacher's speed from its tokens/s and the share in which it was busy",
            ),
            lengths=Lengths(median=10_932, sigma=0.61, most=30_720),
            prompt_tokens=147,
            prompts_per_step=128,
            samples_per_prompt=1,
            decode_gpus=2,
            decode_seconds=1 / 280,
            crowding=0.0436,
            teacher_tokens_per_second=80_600,
            trainer_tokens_per_second=7_400,
            optimizer_seconds=0.0,
            sync_seconds=2.87,
            published=Published(
                engines=3,
                gpus_per_engine=2,
                trainer_gpus=8,
                writing_seconds=194.3,
                training_seconds=28.7,
                training_tokens=1_697_792,
            ),
        ),
    )
}
