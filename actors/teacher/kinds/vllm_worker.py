"""What the vLLM teacher adds to vLLM's workers: scores of responses, read off the hidden states.

vLLM's own prompt log-probabilities project prompts to the vocabulary too, cannot leave out padding
rows, and on this model runner cannot name the tokens wanted; on the other one (V2) naming tokens
costs a second projection beside the top-k. Here asked response rows alone are projected, once, for
all that is wanted of them. vLLM imports this module in every worker process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group

from actors.engine_sleep import SleepOnCpu
from actors.teacher.kinds.projection import project

# The key of SamplingParams.extra_args under which a request says whose response it holds.
RESPONSE_KEY = "opd_ray_response"
# Called by vLLM's model runner after each forward pass, with its hidden states.
_HOOK = "_get_prompt_logprobs_dict"


@dataclass
class Response:
    """A response of which n tokens are to be scored."""

    places_n: np.ndarray  # positions whose hidden states predict them, ascending
    sampled_n: np.ndarray  # the tokens
    student_nK: np.ndarray  # the student's top-K ids before each of them
    rows: dict[str, np.ndarray] = field(default_factory=dict)  # as project() names them, [n, ...]
    written_n: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.written_n = np.zeros(len(self.sampled_n), dtype=bool)

    def between(self, begin: int, end: int) -> slice:
        """The rows that positions ``begin`` to ``end - 1`` predict."""
        first, last = np.searchsorted(self.places_n, (begin, end))
        return slice(int(first), int(last))

    def write(self, part: slice, values: Mapping[str, np.ndarray]) -> None:
        """Rows ``part`` of every array; a preempted request writes its rows again."""
        for name, value in values.items():
            if name not in self.rows:
                self.rows[name] = np.empty((len(self.sampled_n), *value.shape[1:]), value.dtype)
            self.rows[name][part] = value
        self.written_n[part] = True


class TeacherWorkerExtension(SleepOnCpu):
    """Scores the asked rows of every forward pass (vLLM mixes it into its worker class).

    ``collective_rpc`` reaches its methods in every worker.
    """

    def start_scoring(self, vocab_size: int, topk: int) -> None:
        """Once, after the model is loaded.

        Prefix caching has to be off: a cached row would have no hidden state.

        Args:
            vocab_size: tokens that are real.
            topk: how many of the likeliest tokens are kept.

        Raises:
            RuntimeError: this version's model runner has no such call.
        """
        after_forward = getattr(self.model_runner, _HOOK, None)
        if after_forward is None:
            raise RuntimeError(
                f"vLLM's {type(self.model_runner).__name__} has no {_HOOK}(): this vLLM is none "
                "that the vllm teacher knows (see the lock file); use kind hf"
            )
        self._scored_vocab_size, self._scored_topk = vocab_size, topk
        self._responses: dict[str, Response] = {}

        def hooked(hidden_ND: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
            self._score_responses(hidden_ND, num_scheduled_tokens)
            return after_forward(hidden_ND, num_scheduled_tokens)

        setattr(self.model_runner, _HOOK, hooked)

    def expect_responses(self, responses: Mapping[str, Response]) -> None:
        """Responses by the key that their requests will carry."""
        self._responses.update(responses)

    def pop_responses(self, keys: Sequence[str]) -> list[dict[str, np.ndarray]] | None:
        """The rows of finished requests, as ``project`` of ``kinds.projection`` names them.

        None in workers other than the first.

        Raises:
            RuntimeError: rows were never computed.
        """
        responses = [self._responses.pop(key) for key in keys]
        for key, response in zip(keys, responses, strict=True):
            if not response.written_n.all():
                missing = int(np.argmin(response.written_n))
                raise RuntimeError(f"vLLM never computed row {missing} of response {key}")
        return [r.rows for r in responses] if get_tp_group().rank_in_group == 0 else None

    def _score_responses(
        self, hidden_ND: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> None:
        runner = self.model_runner
        parts: list[tuple[Response, slice]] = []
        positions: list[np.ndarray] = []
        for request_id, tokens in num_scheduled_tokens.items():
            request = runner.requests[request_id]
            extra_args = request.sampling_params.extra_args or {}
            if (key := extra_args.get(RESPONSE_KEY)) is None:
                continue
            response = self._responses[key]
            read = request.num_computed_tokens  # before this forward pass
            part = response.between(read, read + tokens)
            if part.start == part.stop:
                continue
            offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]])
            parts.append((response, part))
            positions.append(response.places_n[part] - read + offset)
        if not parts:
            return
        where_N = torch.from_numpy(np.concatenate(positions)).to(hidden_ND.device)
        flat = project(
            hidden_ND[where_N],
            runner.model.compute_logits,
            np.concatenate([response.sampled_n[part] for response, part in parts]),
            np.concatenate([response.student_nK[part] for response, part in parts]),
            topk=self._scored_topk,
            vocab_size=self._scored_vocab_size,
        )
        start = 0
        for response, part in parts:
            end = start + part.stop - part.start
            response.write(part, {name: values[start:end] for name, values in flat.items()})
            start = end
