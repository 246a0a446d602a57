"""The student's vLLM engine: requests in, finished rollouts out, new weights in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine_sleep import PARTS, Part, Sleep, fall_asleep, wake_up
from actors.process import prepare_vllm
from actors.rollout.adapter import EngineAdapter, adapter_args
from actors.rollout.recorded_scores import RECORD_KEY, TOPK_CONFIG, VOCAB_CONFIG, RecordedScores
from actors.weights.registry import TRANSPORTS
from opd_ray.config.choices import LoraForm
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.errors import Asleep
from opd_ray.importing import importing
from opd_ray.models.context import engine_overrides
from opd_ray.models.tokenizer import model_config
from opd_ray.models.weights import weights_checked
from opd_ray.types import Rollout, RolloutRequest, Sampling, TopK

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

_NOTHING = np.empty(0, dtype=np.float32)


class RolloutEngine:
    """One vLLM engine in this process (its workers too, unless it is tensor parallel).

    Built on ``vllm.v1.engine.llm_engine.LLMEngine`` with synchronous scheduling and prefix caching,
    so that the samples of one prompt share its keys and values.

    Args:
        student: model folder, context length; with an adapter, until the first one has come, the
            model writes without.
        rollout: sizes, threads, K of the recorded top-K.
        sync: transport of new weights, or of adapters.
        vocab_size: real tokens; rows of the output beyond them are padding. None: all rows.
        sleeps: whether :meth:`sleep` is to be called.

    Raises:
        ValueError: ``rollout.record_topk`` exceeds the vocabulary, or the KV cache does not hold
            one text of the context length.
        WeightsError: the files lack weights of the model, or hold others.
    """

    def __init__(
        self,
        student: StudentSettings,
        rollout: RolloutSettings,
        sync: SyncSettings,
        vocab_size: int | None = None,
        *,
        sleeps: bool = False,
    ) -> None:
        self._student, self._rollout, self._sync = student, rollout, sync
        self._sleeps = sleeps
        self._asleep: set[Part] = set()
        self._vocab_size = vocab_size
        self._requests: dict[str, tuple[RolloutRequest, bool]] = {}
        self._weights_complete = True

        prepare_vllm(rollout.threads)
        with importing():
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

        config = EngineArgs(**self.engine_args()).create_engine_config()
        rows = config.model_config.get_vocab_size()
        vocab_size = config.additional_config.setdefault(VOCAB_CONFIG, rows)
        if rollout.record_topk > vocab_size:
            raise ValueError(
                f"rollout.record_topk is {rollout.record_topk}, but the student's vocabulary has "
                f"{vocab_size} tokens; lower it"
            )
        try:
            with weights_checked(student.path, trust_remote_code=student.trust_remote_code):
                self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        except ValueError as error:
            if "gpu_memory_utilization" not in str(error):
                raise
            # vLLM's advice when the KV cache is too small, on a CPU too.
            key = "gpu_memory_utilization" if rollout.gpus_per_actor else "kv_cache_bytes"
            raise ValueError(
                f"rollout.{key} = {getattr(rollout, key)}: vLLM's KV cache does not hold one text "
                f"of student.context_length = {student.context_length} tokens; raise it, or lower "
                f"the context ({str(error).partition('. ')[0]})"
            ) from error
        self._adapter = EngineAdapter(self._engine, student.lora) if self._serves_adapter else None
        self._engine.set_weight_version("0")

    def engine_args(self) -> dict[str, Any]:
        """Arguments of vLLM's ``EngineArgs``."""
        from actors.kernels.rms_norm import CPU_KERNEL_CONFIG
        from actors.rollout.score_recorder import ScoreRecorder
        from actors.rollout.vllm_worker import RolloutWorkerExtension

        rollout = self._rollout
        described = model_config(
            self._student.path, trust_remote_code=self._student.trust_remote_code
        )
        args: dict[str, Any] = {
            "model": self._student.path,
            "hf_overrides": engine_overrides(described),
            "trust_remote_code": self._student.trust_remote_code,
            "max_model_len": self._student.context_length,
            "dtype": rollout.dtype.value,
            "use_tqdm_on_load": False,
            "tensor_parallel_size": rollout.tensor_parallel_size,
            # Workers of a tensor-parallel engine are children of this process, on this node.
            "distributed_executor_backend": "mp" if rollout.tensor_parallel_size > 1 else "uni",
            "max_num_seqs": rollout.max_num_seqs,
            "max_num_batched_tokens": rollout.max_num_batched_tokens,
            "enforce_eager": rollout.enforce_eager or not rollout.gpus_per_actor,
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "logits_processors": [_path(ScoreRecorder, ":")],
            "worker_extension_cls": _path(RolloutWorkerExtension, "."),
            "additional_config": {TOPK_CONFIG: rollout.record_topk}
            | ({VOCAB_CONFIG: self._vocab_size} if self._vocab_size else {}),
            "weight_transfer_config": {"backend": TRANSPORTS[self._sync.backend].vllm_backend},
        }
        if rollout.gpus_per_actor:
            args["gpu_memory_utilization"] = rollout.gpu_memory_utilization
            args["enable_sleep_mode"] = self._sleeps
        else:
            args["kv_cache_memory_bytes"] = rollout.kv_cache_bytes
            args["kernel_config"] = CPU_KERNEL_CONFIG
            # The smallest its attention kernel likes, so that short prompts are shared too.
            args["block_size"] = 32
            # When a partly prefilled prompt's sample is thrown away, vLLM rewinds its seeded
            # generator; a CPU generator cannot do that (it raises). So prompts are prefilled whole.
            args["enable_chunked_prefill"] = False
            args["max_num_batched_tokens"] = max(
                rollout.max_num_batched_tokens, self._student.context_length
            )
        if self._serves_adapter:
            args |= adapter_args(self._student)
        return args

    @property
    def _serves_adapter(self) -> bool:
        return self._student.lora.on and self._sync.lora is LoraForm.adapter

    @property
    def context_length(self) -> int:
        """Longest prompt plus response, tokens."""
        return self._engine.model_config.max_model_len

    def has_unfinished(self) -> bool:
        """Whether :meth:`step` has anything to do."""
        return bool(self._requests)

    def add(self, requests: Sequence[RolloutRequest], sampling: Sampling, record: bool) -> None:
        """Take on requests, all or none; :meth:`step` brings their rollouts.

        Equal seeds give equal responses, whatever else is in the batch and in whatever order,
        except where two tokens lie within rounding error of each other (matrix products round by
        the shape of the batch).

        Args:
            requests: with ids unlike those of all unfinished ones.
            sampling: for all of them. A response ends at the context length at the latest.
            record: keep entropy, log-probability and top-K of every token; else these stay empty.

        Raises:
            ValueError: a prompt is empty or leaves no room for a response, or an id is in use.
            RuntimeError: the last weight update failed half-way.
            Asleep: it is.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        if self._asleep:
            raise Asleep("the rollout engine", "rollouts")
        if not self._weights_complete:
            raise RuntimeError(
                "the last weight update failed, so this engine's weights are incomplete until "
                "another one is whole"
            )
        ids_in_use = set(self._requests)
        longest = self.context_length - 1
        for request in requests:
            length = len(request.prompt_ids)
            if not 1 <= length <= longest:
                raise ValueError(
                    f"prompt {request.prompt_id!r} has {length} tokens; it must have 1 to "
                    f"{longest}, so that a response fits into student.context_length = "
                    f"{self.context_length}"
                )
            if request.rollout_id in ids_in_use:
                raise ValueError(f"rollout id {request.rollout_id!r} is asked for twice at once")
            ids_in_use.add(request.rollout_id)
        adapter = self._adapter.request if self._adapter else None
        for request in requests:
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={RECORD_KEY: request.rollout_id} if record else None,
            )
            prompt = tokens_input(request.prompt_ids.tolist())
            self._engine.add_request(request.rollout_id, prompt, params, lora_request=adapter)
            self._requests[request.rollout_id] = (request, record)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache: what comes next is computed as in a new engine.

        Raises:
            RuntimeError: requests are unfinished.
        """
        if not self._engine.reset_prefix_cache():
            raise RuntimeError(
                f"vLLM kept its prefix cache: {len(self._requests)} requests are unfinished"
            )

    def step(self) -> list[Rollout]:
        """One forward pass for everything in the batch; the rollouts that it finished."""
        finished = [output for output in self._engine.step() if output.finished]
        recorded = [o.request_id for o in finished if self._requests[o.request_id][1]]
        scores: dict[str, RecordedScores] = {}
        if recorded:
            first_worker, *_ = self._engine.collective_rpc("pop_scores", args=(recorded,))
            scores = dict(zip(recorded, first_worker, strict=True))
        return [self._rollout_of(output, scores.get(output.request_id)) for output in finished]

    def abort(self) -> None:
        """Give up all requests that are unfinished."""
        if not self._requests:
            return
        self._engine.abort_request([*self._requests])
        recorded = [key for key, (_, record) in self._requests.items() if record]
        self._engine.collective_rpc("forget_scores", args=(recorded,))
        self._requests.clear()

    def sleep(self) -> None:
        """Give memory of weights and cache back, whatever of it is here.

        Weights are gone. Where an adapter is served, they wait in main memory, as nobody would
        bring them again: what comes before the engine writes is the adapter alone.

        Raises:
            RuntimeError: requests are unfinished.
        """
        if self._asleep == set(PARTS):
            return
        if self._requests:
            raise RuntimeError(
                f"the engine is to sleep while {len(self._requests)} requests are unfinished"
            )
        if self._asleep:  # it was on its way to be awake, and vLLM sleeps as a whole
            self.wake("kv_cache")
        if not (self._weights_complete or self._adapter):
            self._engine.collective_rpc("drop_weight_update")
        self._weights_complete = False
        level = Sleep.keeping_weights if self._adapter else Sleep.dropping_weights
        fall_asleep(self._engine, level, on_gpu=self._rollout.gpus_per_actor > 0)
        self._asleep = set(PARTS)

    def wake(self, part: Part) -> None:
        """Take memory again: first of the weights, so that new ones can come, then of the cache."""
        if part in self._asleep:
            wake_up(self._engine, part, on_gpu=self._rollout.gpus_per_actor > 0)
            self._asleep.discard(part)

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Connect the workers to the trainer, for transports of vLLM's own."""
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def start_weight_update(self) -> None:
        """First of three calls of an update; what one that broke off has brought is forgotten.

        Raises:
            RuntimeError: requests are unfinished.
            Asleep: there is no memory for them.
        """
        if "weights" in self._asleep:
            raise Asleep("the rollout engine", "new weights")
        if self._requests:
            raise RuntimeError(
                f"new weights came while {len(self._requests)} requests are unfinished; "
                "collect their rollouts first"
            )
        if self._adapter:
            self._adapter.begin()
        else:
            if not self._weights_complete:
                self._engine.collective_rpc("drop_weight_update")
            self._engine.collective_rpc("start_weight_update")
        self._weights_complete = False

    def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Second call of an update, once or more often; the backend defines ``update_info``."""
        if self._adapter:
            self._adapter.receive(update_info["chunk"])
            return
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update_info})

    def finish_weight_update(self, version: int) -> None:
        """Last call of an update: drops the prefix cache and sets the version."""
        if self._adapter:
            self._adapter.finish(version)
        else:
            self._engine.collective_rpc("finish_weight_update")
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over a weight update")
        self._engine.set_weight_version(str(version))
        self._weights_complete = True

    def _rollout_of(self, output: RequestOutput, scores: RecordedScores | None) -> Rollout:
        request, _ = self._requests.pop(output.request_id)
        completion = output.outputs[0]
        response_ids = np.asarray(completion.token_ids, dtype=np.int32)
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"vLLM ended rollout {request.rollout_id!r} with {completion.finish_reason!r}"
            )
        if scores and len(scores.entropy_m) != len(response_ids):
            raise RuntimeError(
                f"rollout {request.rollout_id!r} has {len(response_ids)} tokens but "
                f"{len(scores.entropy_m)} recorded scores"
            )
        (span,) = completion.weight_versions
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_ids=request.prompt_ids,
            response_ids=response_ids,
            response_mask=np.ones(len(response_ids), dtype=np.uint8),
            entropy=scores.entropy_m if scores else _NOTHING,
            logprob=scores.logprob_m if scores else _NOTHING,
            finish_reason=completion.finish_reason,
            weights_version=int(span.version),
            topk=TopK(scores.topk_ids_mK, scores.topk_logprobs_mK) if scores else None,
            source=request.source,
            figures={
                "prompt_tokens": len(request.prompt_ids),
                "cached_tokens": output.num_cached_tokens or 0,
            },
        )


def _path(cls: type, separator: str) -> str:
    return f"{cls.__module__}{separator}{cls.__qualname__}"
