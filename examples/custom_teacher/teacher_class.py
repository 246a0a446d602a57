"""A teacher of one's own: a Hugging Face model, softened, that excludes no token."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_ray.batching.alignment import predicting_positions
from opd_ray.models.context import context_length
from opd_ray.models.tokenizer import tokenizer_hash, vocabulary_size
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo, TopKSignal


class SoftTeacher:
    """(1 - floor) * softmax(logits / temperature) + floor / V, of the model at ``path``."""

    def __init__(self, path: str, topk: int, temperature: float = 1.0, floor: float = 0.01) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        self._vocab_size = vocabulary_size(tokenizer)  # no padding rows
        self._hash = tokenizer_hash(tokenizer)
        self._topk, self._temperature, self._floor = topk, temperature, floor

    def info(self) -> TeacherInfo:
        context = context_length(self._model.config.to_dict())
        return TeacherInfo("soft", self._vocab_size, context, ("topk",), tokenizer_hash=self._hash)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        del self._model

    @torch.inference_mode()
    def _answer(self, request: ScoreRequest) -> TeacherAnswer:
        response = request.response_ids
        text = torch.from_numpy(np.concatenate((request.prompt_ids, response))).long()
        rows = predicting_positions(len(request.prompt_ids), np.arange(len(response)))
        logits_mV = self._model(text[None]).logits[0, rows, : self._vocab_size].float()
        model_mV = (logits_mV / self._temperature).softmax(dim=-1)
        soft_mV = (1 - self._floor) * model_mV + self._floor / self._vocab_size
        logprobs_mV = soft_mV.log().numpy()
        topk = np.argsort(-logprobs_mV, axis=1)[:, : self._topk].astype(np.int32)
        return TeacherAnswer(
            rollout_id=request.rollout_id,
            logprob=np.take_along_axis(logprobs_mV, response[:, None], axis=1)[:, 0],
            at_student_topk=np.take_along_axis(logprobs_mV, request.student_topk.ids, axis=1),
            signal=TopKSignal(topk, np.take_along_axis(logprobs_mV, topk, axis=1)),
            entropy=-(soft_mV.numpy() * logprobs_mV).sum(axis=1),
        )
