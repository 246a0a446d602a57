"""A vLLM engine as teacher, inside the teacher's own process.

Prompt and response are prefilled in passes of bounded size; the workers score asked rows as
their hidden states come by (:mod:`actors.teacher.kinds.vllm_worker`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine_sleep import PARTS, Sleep, fall_asleep, wake_up
from actors.process import prepare_vllm
from actors.teacher.kinds.projection import answer_of, widest_topk
from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.batching.alignment import predicting_positions
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.importing import importing
from opd_ray.models.context import context_length, engine_overrides
from opd_ray.models.tokenizer import model_config, tokenizer_hash
from opd_ray.models.weights import weights_checked
from opd_ray.types import ScoreRequest, SignalKind, TeacherAnswer, TeacherInfo

_MAX_SEQUENCES = 64  # of one pass; bounds the logits of the last rows, which vLLM samples from


class VllmTeacher:
    """Scores with a vLLM engine (see :class:`actors.teacher.protocol.Teacher`).

    Its distribution, entropy included, is that of the whole real vocabulary in float32, as the hf
    teacher's. Prefix caching is off: a row that is not computed cannot be scored.

    Args: as :func:`actors.teacher.registry.make_teacher`; of ``settings``, ``path``, ``dtype``,
        ``signal`` (``topk`` or ``sampled``), ``topk``, ``batch_tokens`` (of one forward pass;
        longer sequences take several), ``kv_cache_bytes``, ``tensor_parallel_size``,
        ``gpus_per_replica``, ``gpu_memory_utilization`` and ``threads``. ``sleeps``: :meth:`sleep`
        is to be called.

    Raises:
        TeacherError: a vocabulary smaller than ``vocab_size``, or no room in the KV cache.
        WeightsError: the files lack weights of the model, or hold others.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        *,
        vocab_size: int | None = None,
        own_topk: int = 0,
        sleeps: bool = False,
    ) -> None:
        self._settings, self._own_topk, self._sleeps = settings, own_topk, sleeps
        self._keys = count()
        prepare_vllm(max(1, settings.threads))
        with importing():
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

        described = model_config(str(settings.path), trust_remote_code=settings.trust_remote_code)
        overrides = engine_overrides(described)
        config = EngineArgs(**self._engine_args(), hf_overrides=overrides).create_engine_config()
        rows = config.model_config.get_vocab_size()
        # vLLM allows more than it has positions for with some of the scaled ones.
        self._own_length = min(config.model_config.max_model_len, context_length(described))
        self._vocab_size = rows if vocab_size is None else vocab_size
        if self._vocab_size > rows:
            raise TeacherError(
                f"{settings.path}: its output head has {rows} rows for {self._vocab_size} tokens"
            )
        try:
            with weights_checked(str(settings.path), trust_remote_code=settings.trust_remote_code):
                self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        except ValueError as error:
            if "max_model_len" not in str(error):
                raise
            # Its own advice names the key for GPUs only.
            key, value = _cache_key(settings)
            raise TeacherError(
                f"{key} = {value}: vLLM's KV cache does not hold a single token of this model; "
                "raise it"
            ) from error
        # A top-k beyond the vocabulary is refused by the server, with the name of the setting.
        widest = min(widest_topk(settings, own_topk), self._vocab_size)
        self._engine.collective_rpc("start_scoring", args=(self._vocab_size, widest))
        self._info = self._describe()

    def info(self) -> TeacherInfo:
        """What this teacher is.

        The vocabulary is without padding rows; the context length is what fits into the KV cache,
        if that is less than the model's own.
        """
        return self._info

    def adapted(self, wanted: Wanted) -> VllmTeacher:
        """A teacher with the same engine that answers as ``wanted``.

        Raises:
            TeacherError: the hidden signal, or a top-k wider than the engine was started for.
        """
        signals: tuple[SignalKind, ...] = (wanted.signal.value,)
        settings = replace(self._settings, signal=wanted.signal, topk=wanted.topk)
        started = widest_topk(self._settings, self._own_topk)
        if wanted.signal is SignalChoice.hidden or widest_topk(settings, wanted.own_topk) > started:
            raise TeacherError(
                f"a run wants teacher.signal = {wanted.signal} with teacher.topk = {wanted.topk} "
                f"and {wanted.own_topk} of the teacher's own likeliest tokens; this vllm teacher "
                f"gives topk up to {started}, or sampled: start it with a larger teacher.topk"
            )
        other = copy.copy(self)
        other._settings, other._own_topk = settings, wanted.own_topk
        other._info = replace(self._info, signals=signals)
        return other

    def sleep(self) -> None:
        """Give memory back until :meth:`wake`: weights go to main memory, the cache is dropped."""
        fall_asleep(self._engine, Sleep.keeping_weights, on_gpu=self._on_gpu)

    def wake(self) -> None:
        """Have weights and cache again."""
        for part in PARTS:
            wake_up(self._engine, part, on_gpu=self._on_gpu)

    @property
    def _on_gpu(self) -> bool:
        return self._settings.gpus_per_replica > 0

    def close(self) -> None:
        """Release the engine's memory and processes."""
        self._engine.engine_core.shutdown()

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, in the order of the requests."""
        # The engine imported vLLM in its own time.
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from actors.teacher.kinds.vllm_worker import RESPONSE_KEY, Response

        # Not the rollouts' ids: a rollout may be asked for anew after a failed pass.
        by_key = {str(next(self._keys)): request for request in requests}
        responses = {
            key: Response(
                predicting_positions(len(request.prompt_ids), request.asked),
                request.response_ids[request.asked],
                request.student_topk.ids,
            )
            for key, request in by_key.items()
        }
        self._engine.collective_rpc("expect_responses", args=(responses,))
        for key, request in by_key.items():
            # The last response token predicts nothing that anyone asked for: it is not read.
            text = np.concatenate((request.prompt_ids, request.response_ids))[:-1]
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={RESPONSE_KEY: key},
            )
            self._engine.add_request(key, tokens_input(text.tolist()), params)

        answers: dict[str, TeacherAnswer] = {}
        while self._engine.has_unfinished_requests():
            done = [output.request_id for output in self._engine.step() if output.finished]
            if not done:
                continue
            first_worker, *_ = self._engine.collective_rpc("pop_responses", args=(done,))
            for key, rows in zip(done, first_worker, strict=True):
                answers[key] = answer_of(
                    by_key[key].rollout_id, rows, self._settings, self._own_topk
                )
        return [answers[key] for key in by_key]

    def _engine_args(self) -> dict[str, Any]:
        """Arguments of vLLM's ``EngineArgs``."""
        settings = self._settings
        args: dict[str, Any] = {
            "model": settings.path,
            "trust_remote_code": settings.trust_remote_code,
            "skip_tokenizer_init": True,
            "max_model_len": -1,  # as much as the KV cache holds, up to the model's own
            "dtype": settings.dtype.value,
            "use_tqdm_on_load": False,
            "tensor_parallel_size": settings.tensor_parallel_size,
            # Workers of a tensor-parallel engine are children of this process, on this node.
            "distributed_executor_backend": "mp" if settings.tensor_parallel_size > 1 else "uni",
            "max_num_seqs": min(_MAX_SEQUENCES, settings.batch_tokens),
            "max_num_batched_tokens": settings.batch_tokens,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,
            "enforce_eager": not settings.gpus_per_replica,
            "async_scheduling": False,
            "worker_extension_cls": "actors.teacher.kinds.vllm_worker.TeacherWorkerExtension",
        }
        if settings.gpus_per_replica:
            args["enable_sleep_mode"] = self._sleeps
            share = min(1.0, settings.gpus_per_replica)  # of a GPU that others are on too
            args["gpu_memory_utilization"] = settings.gpu_memory_utilization * share
        else:
            args["kv_cache_memory_bytes"] = settings.kv_cache_bytes
            # The smallest its attention kernel likes: half-full blocks waste less of the cache.
            args["block_size"] = 32
        return args

    def _describe(self) -> TeacherInfo:
        from transformers import AutoTokenizer

        path, trust = str(self._settings.path), self._settings.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
        cache = self._engine.vllm_config.cache_config
        # vLLM keeps one block for itself; a sequence that needs it too would wait for ever.
        fits = (cache.num_gpu_blocks - 1) * cache.block_size
        longest = min(self._engine.model_config.max_model_len, self._own_length)
        meta: dict[str, Any] = {"kind": "vllm", "dtype": self._settings.dtype.value, "path": path}
        if min(fits, longest) < self._own_length:
            key, value = _cache_key(self._settings)
            meta["context_limit"] = {
                "key": key,
                "value": value,
                "tokens": fits + cache.block_size,
                "block": cache.block_size,
            }
        return TeacherInfo(
            name=Path(path).name,
            vocab_size=self._vocab_size,
            context_length=min(longest, fits),
            signals=(self._settings.signal.value,),
            tokenizer_hash=tokenizer_hash(tokenizer),
            answers_rows=True,
            meta=meta,
        )


def _cache_key(settings: TeacherSettings) -> tuple[str, float]:
    """The key that sizes the KV cache, and its value."""
    if settings.gpus_per_replica:
        return f"{settings.key}.gpu_memory_utilization", settings.gpu_memory_utilization
    return f"{settings.key}.kv_cache_bytes", settings.kv_cache_bytes
