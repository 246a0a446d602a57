"""A process with several rollout engines for tests, and Hugging Face's word on their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actors.weights.object_store import ObjectStore
from opd_ray.config.environment import EnvironmentSet
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.models.context import engine_overrides
from opd_ray.models.tokenizer import describe_model, model_config
from opd_ray.types import Rollout, RolloutRequest, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from actors.weights.chunks import WeightChunk

CONTEXT_LENGTH = 128
TOPK = 5


class EngineHost:
    """Holds plain rollout engines in one process; see :func:`start_host`."""

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}
        self._preemptions: dict[str, int] = {}

    def limits(self) -> tuple[list[int], set[str]]:
        """What vLLM itself says: head sizes on CPUs, and architectures that write text."""
        from vllm.model_executor.models import registry
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        writing = (
            registry._TEXT_GENERATION_MODELS
            | registry._MULTIMODAL_MODELS
            | registry._TRANSFORMERS_SUPPORTED_MODELS
        )
        return CPUAttentionBackend.get_supported_head_sizes(), set(writing)

    def start(
        self,
        name: str,
        path: str,
        args: dict[str, Any],
        lora: LoraSettings | None = None,
        **settings: Any,
    ) -> None:
        """A new engine; ``args`` overrides what it tells vLLM, ``settings`` the test defaults.

        Its recorder begins with room for three tokens, so that it has to grow.
        """
        from actors.rollout.engine import RolloutEngine
        from actors.rollout.recorded_scores import ScoreArena

        class Engine(RolloutEngine):
            def engine_args(self) -> dict[str, Any]:
                return super().engine_args() | args

        student, rollout = tiny_settings(path, **settings)
        student = replace(student, lora=lora or LoraSettings())
        engine = Engine(student, rollout, SyncSettings())
        self._engines[name] = engine
        self._recorder(name).arena = ScoreArena(rollout.record_topk, torch.device("cpu"), rows=3)
        self._preemptions[name] = 0
        scheduler = engine._engine.engine_core.engine_core.scheduler
        preempt = scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._preemptions[name] += 1
            return preempt(*args, **kwargs)

        scheduler._preempt_request = counted

    def act(self, name: str, environments: EnvironmentSet) -> None:
        """An engine's rollouts take turns, under its name with a + behind it."""
        from actors.rollout.episodes import EpisodeEngine

        student = describe_model(self._engines[name]._student.path)
        self._engines[f"{name}+"] = EpisodeEngine(
            self._engines[name], environments, student.tokenizer, student.eos_ids, 8
        )

    def generate(
        self, name: str, requests: Sequence[RolloutRequest], sampling: Sampling, record: bool = True
    ) -> list[Rollout]:
        """All rollouts, in the order in which they ended."""
        engine = self._engines[name]
        engine.add(requests, sampling, record)
        rollouts = []
        while engine.has_unfinished():
            rollouts += engine.step()
        # Tests that look at each of them must have some to look at.
        assert sorted(r.rollout_id for r in rollouts) == sorted(r.rollout_id for r in requests)
        return rollouts

    def call(self, name: str, method: str, *args: Any) -> Any:
        """Any method of an engine."""
        return getattr(self._engines[name], method)(*args)

    def load_weights(self, name: str, version: int, chunks: Sequence[WeightChunk]) -> None:
        """As the object store's end in a rollout actor does."""
        ObjectStore.engine_end(self._engines[name]).load(version, *chunks)

    def preemptions(self, name: str) -> int:
        """How often vLLM took a running request off an engine for want of KV blocks."""
        return self._preemptions[name]

    def rows_in_use(self, name: str) -> int:
        """Rows of recorded scores that were not given back."""
        arena = self._recorder(name).arena
        return len(arena.entropy_S) - len(arena._free)

    def norms(self, name: str) -> list[list[str]]:
        """The implementations of RMS norms that an engine's worker tries, in that order."""

        def find(_: Any) -> Any:
            from vllm import ir

            return [ir.ops.rms_norm.get_priority(), ir.ops.fused_add_rms_norm.get_priority()]

        return self._engines[name]._engine.collective_rpc(find)[0]

    def longest(self, path: str) -> int:
        """The length that vLLM chooses for a model, told what an engine is told."""
        from vllm.config import ModelConfig

        overrides = engine_overrides(model_config(path))
        return ModelConfig(model=path, hf_overrides=overrides).max_model_len

    def _recorder(self, name: str) -> Any:
        from actors.rollout.score_recorder import ScoreRecorder

        def find(worker: Any) -> Any:
            processors = worker.model_runner.input_batch.logitsprocs.all
            return next(p for p in processors if isinstance(p, ScoreRecorder))

        return self._engines[name]._engine.collective_rpc(find)[0]


class _HostManager(BaseManager):
    """Runs an EngineHost in a process of its own."""


_HostManager.register("EngineHost", EngineHost)


def start_host() -> tuple[BaseManager, EngineHost]:
    """An EngineHost in a new process, and the manager whose ``shutdown`` ends it.

    vLLM is imported once for several engines, and what it changes in its process stays out of
    pytest's.
    """
    manager = _HostManager(ctx=get_context("spawn"))
    manager.start()
    return manager, manager.EngineHost()


def tiny_settings(
    path: str, context_length: int = CONTEXT_LENGTH, **rollout: Any
) -> tuple[StudentSettings, RolloutSettings]:
    """Settings of an engine that is too small for its requests: they queue, and rows move."""
    small = RolloutSettings(
        threads=1,
        max_num_seqs=4,
        record_topk=TOPK,
        max_num_batched_tokens=CONTEXT_LENGTH,
        kv_cache_bytes=1 << 24,
    )
    return StudentSettings(path, context_length=context_length), replace(small, **rollout)


def tiny_requests(
    prompts: int = 6, samples: int = 2, shortest: int = 3, step: int = 7, seed: int = 0
) -> list[RolloutRequest]:
    """Prompts of ``shortest``, ``shortest + step``, ... tokens, ``samples`` requests of each."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, 96, shortest + step * i).astype(np.int32) for i in range(prompts)]
    return [
        RolloutRequest(f"p{i}-{n}", f"p{i}", n, texts[i], seed=1000 * seed + 10 * i + n)
        for i in range(prompts)
        for n in range(samples)
    ]


@dataclass(frozen=True)
class Reference:
    """Scores of one response by the definition ([m] or [m, V], float64)."""

    entropy_m: np.ndarray
    logprob_m: np.ndarray
    logprobs_mV: np.ndarray


def reference_scores(
    model: PreTrainedModel, rollout: Rollout, vocab_size: int | None = None
) -> Reference:
    """A plain forward pass over prompt and response; ``vocab_size`` leaves out later rows."""
    ids = np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64)
    with torch.no_grad():
        logits_LV = model(torch.tensor(ids)[None]).logits[0, :, :vocab_size].double()
    # The logits at the token before it predict a token.
    first = len(rollout.prompt_ids) - 1
    logprobs_mV = torch.log_softmax(logits_LV, -1)[
        first : first + len(rollout.response_ids)
    ].numpy()
    probs_mV = np.exp(logprobs_mV)
    return Reference(
        entropy_m=-(probs_mV * logprobs_mV).sum(-1),
        logprob_m=logprobs_mV[np.arange(len(rollout.response_ids)), rollout.response_ids],
        logprobs_mV=logprobs_mV,
    )


def assert_scores_match(
    model: PreTrainedModel,
    rollout: Rollout,
    tolerance: float = 1e-4,
    vocab_size: int | None = None,
) -> None:
    """Entropy, log-probability and top-K of every token equal Hugging Face's, in nats."""
    expected = reference_scores(model, rollout, vocab_size)
    where = rollout.rollout_id
    for name, actual_m, expected_m in (
        ("entropy", rollout.entropy, expected.entropy_m),
        ("logprob", rollout.logprob, expected.logprob_m),
    ):
        assert actual_m.dtype == np.float32
        np.testing.assert_allclose(
            actual_m, expected_m, rtol=0, atol=tolerance, err_msg=f"{name} of {where}"
        )
    topk = rollout.topk
    assert topk.ids.dtype == np.int32
    assert topk.logprobs.dtype == np.float32
    best_mK = -np.sort(-expected.logprobs_mV)[:, :TOPK]
    at_ids_mK = np.take_along_axis(expected.logprobs_mV, topk.ids.astype(np.int64), axis=1)
    # Two ways round, so that ties may come in either order but no token twice.
    np.testing.assert_allclose(topk.logprobs, best_mK, rtol=0, atol=tolerance, err_msg=where)
    np.testing.assert_allclose(topk.logprobs, at_ids_mK, rtol=0, atol=tolerance, err_msg=where)
    assert all(len(set(row)) == TOPK for row in topk.ids.tolist())


def load(path: Path | str) -> PreTrainedModel:
    """The Hugging Face model, float32."""
    from transformers import AutoModelForCausalLM  # not in the engines' process

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def change_all_weights(model: PreTrainedModel, seed: int) -> None:
    """Add noise as large as the weights themselves to every one of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.ndim == 2 else 0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
