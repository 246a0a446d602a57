"""A Hugging Face causal LM as teacher.

The trunk runs once over prompts and responses; only rows that predict an asked response token are
projected to the vocabulary, a chunk of rows at a time, so memory does not grow with tokens x
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from actors.kernels.packed_attention import PACKED, UnfitModel, check_model, packed_row
from actors.parking import Parking
from actors.teacher.kinds.projection import answer_of, project, widest_topk
from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.batching.alignment import predicting_positions
from opd_ray.batching.micro_batches import plan_micro_batches
from opd_ray.batching.packing import Packing, pack
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.context import context_length
from opd_ray.models.tokenizer import model_config, tokenizer_hash
from opd_ray.models.weights import load_causal_lm
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo, to_array


class HfTeacher:
    """Scores with a Hugging Face causal LM (see :class:`actors.teacher.protocol.Teacher`).

    Log-probabilities and entropies are float32 whatever the weights' format.

    Args: as :func:`actors.teacher.registry.make_teacher`; of ``settings``, ``path``, ``dtype``,
        ``signal``, ``topk``, ``batch_tokens`` (of one forward pass; a longer sequence goes alone)
        and ``gpus_per_replica``.

    Raises:
        TeacherError: a model whose logits are not its output head times its last hidden states
            (soft-capped or scaled logits), one whose texts cannot be packed, or a vocabulary
            smaller than ``vocab_size``.
        WeightsError: the files lack weights of the model, or hold others.
    """

    def __init__(
        self, settings: TeacherSettings, *, vocab_size: int | None = None, own_topk: int = 0
    ) -> None:
        self._settings = settings
        self._model = self._load()
        self._device = self._model.device
        self._trunk = self._model.get_decoder()
        self._head = self._model.get_output_embeddings()
        rows = self._head.weight.shape[0]
        self._vocab_size = rows if vocab_size is None else vocab_size
        if self._vocab_size > rows:
            raise TeacherError(
                f"{settings.path}: its output head has {rows} rows for {self._vocab_size} tokens"
            )
        self._own_topk = own_topk
        self._parking = Parking(self._device)
        self._check_model()
        self._info = self._describe()

    def info(self) -> TeacherInfo:
        """What this teacher is; the vocabulary without padding rows."""
        return self._info

    def adapted(self, wanted: Wanted) -> HfTeacher:
        """A teacher with the same weights that answers as ``wanted``."""
        other = copy.copy(self)
        other._settings = replace(self._settings, signal=wanted.signal, topk=wanted.topk)
        other._own_topk = wanted.own_topk
        other._info = replace(self._info, signals=(wanted.signal.value,))
        return other

    def sleep(self) -> None:
        """Give the weights' memory back until :meth:`wake`."""
        self._parking.park(self._held())

    def wake(self) -> None:
        """Have the weights again."""
        self._parking.bring_back()

    def _held(self) -> Iterator[torch.Tensor]:
        """All that takes memory between two batches."""
        yield from self._model.parameters()
        yield from self._model.buffers()

    def close(self) -> None:
        """Free the weights."""
        del self._model, self._trunk, self._head

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None of the output layer without padding (``to_array``)."""
        bias = getattr(self._head, "bias", None)
        return (
            to_array(self._head.weight[: self._vocab_size]),
            None if bias is None else to_array(bias[: self._vocab_size]),
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, in the order of the requests."""
        with self._computing():
            return self._scored(requests)

    def _load(self) -> PreTrainedModel:
        """The model, where it is to compute."""
        settings = self._settings
        model = load_causal_lm(
            str(settings.path),
            dtype=getattr(torch, settings.dtype.value),
            attn_implementation=PACKED,
            trust_remote_code=settings.trust_remote_code,
        )
        device = torch.device("cuda" if settings.gpus_per_replica else "cpu")
        return model.to(device).eval().requires_grad_(False)

    def _computing(self) -> AbstractContextManager[object]:
        """Stands around every use of the model for answers."""
        return torch.inference_mode()

    def _scored(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        # The last response token predicts nothing that anyone asked for: it is not read.
        texts = [np.concatenate((r.prompt_ids, r.response_ids))[:-1] for r in requests]
        (batches,) = plan_micro_batches(texts, 1, self._settings.batch_tokens)
        answers: dict[int, TeacherAnswer] = {}
        for batch in batches:
            found = self._score_batch([requests[i] for i in batch], pack([texts[i] for i in batch]))
            answers |= zip(batch, found, strict=True)
        return [answers[index] for index in range(len(requests))]

    def _score_batch(self, requests: list[ScoreRequest], packing: Packing) -> list[TeacherAnswer]:
        # Where each response token that is asked about is predicted.
        rows_N = np.concatenate(
            [
                places[predicting_positions(len(r.prompt_ids), r.asked)]
                for r, places in zip(requests, packing.places, strict=True)
            ]
        )
        hidden_ND = self._read(packing)[torch.from_numpy(rows_N).to(self._device)]
        flat = project(
            hidden_ND,
            self._head,
            np.concatenate([r.response_ids[r.asked] for r in requests]),
            np.concatenate([r.student_topk.ids for r in requests]),
            topk=widest_topk(self._settings, self._own_topk),
            vocab_size=self._vocab_size,
        )
        if self._settings.signal is SignalChoice.hidden:
            flat["hidden"] = to_array(hidden_ND)
        ends = np.cumsum([len(r.asked) for r in requests])[:-1]
        parts = {name: np.split(values, ends) for name, values in flat.items()}
        # Copies: a view would keep the whole batch alive as long as one rollout's signal is held.
        return [
            answer_of(
                r.rollout_id,
                {name: values[i].copy() for name, values in parts.items()},
                self._settings,
                self._own_topk,
            )
            for i, r in enumerate(requests)
        ]

    def _read(self, packing: Packing) -> torch.Tensor:
        """The trunk's last hidden states of a row, [T, D]."""
        return self._trunk(**self._row(packing)).last_hidden_state[0]

    def _row(self, packing: Packing) -> dict[str, Any]:
        """Keywords of the model's forward pass."""
        ids_1T, positions_1T = packed_row(packing, self._device)
        return {
            "input_ids": ids_1T,
            "position_ids": positions_1T,
            "use_cache": False,
            "segments": packing.segments,
        }

    def _check_model(self) -> None:
        """Refuse models whose logits are not what :meth:`score` computes."""

        def logits_of(packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
            return self._model(**self._row(packing)).logits[0], self._head(self._read(packing))

        try:
            check_model(logits_of, self._head.weight.shape[0], self._model.dtype)
        except UnfitModel as error:
            raise TeacherError(
                f"{self._settings.path}: {error}; an hf teacher cannot score with such a model, "
                "a vllm teacher can"
            ) from error

    def _describe(self) -> TeacherInfo:
        path, trust = str(self._settings.path), self._settings.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
        return TeacherInfo(
            name=Path(path).name,
            vocab_size=self._vocab_size,
            context_length=context_length(model_config(path, trust_remote_code=trust)),
            signals=(self._settings.signal.value,),
            hidden_size=self._head.weight.shape[1],
            tokenizer_hash=tokenizer_hash(tokenizer),
            answers_rows=True,
            meta={"kind": "hf", "dtype": self._settings.dtype.value, "path": path},
        )
