"""Kind ``self``: the student's own weights as teacher, frozen or following by a moving average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import TeacherError
from actors.weights.chunks import converts_weights
from opd_ray.borders import writing
from opd_ray.config.choices import Dtype
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.weights import load_causal_lm


class Follower(HfTeacher):
    """A Hugging Face teacher whose weights can move towards the student's.

    The average is kept in float32 whatever format the teacher computes in. Every replica makes the
    same average of the same weights.

    Args: as of :class:`HfTeacher`; of ``settings``, ``path`` is the student's, ``follow_decay`` the
        share of the teacher's weights that a step leaves (None: they never move).
    """

    def __init__(
        self, settings: TeacherSettings, *, vocab_size: int | None = None, own_topk: int = 0
    ) -> None:
        super().__init__(settings, vocab_size=vocab_size, own_topk=own_topk)
        self._decay = settings.follow_decay
        if self._decay is not None and converts_weights(self._model):
            raise TeacherError(
                f"{settings.key}.follow_decay = {self._decay}: transformers joins tensors of "
                f"{settings.path} (experts, say) as it loads them, and such a model cannot follow; "
                "set it to null"
            )
        # A tied head is here once, under its first name.
        self._parameters = dict(self._model.named_parameters())
        self._average = {name: p.data for name, p in self._parameters.items()}
        if self._decay is not None and settings.dtype is not Dtype.float32:
            # From the file again: what the teacher computes with is rounded already.
            self._average = {n: p.to(self._device) for n, p in self._from_file().items()}

    @torch.no_grad()
    def follow(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """teacher <- decay x teacher + (1 - decay) x student, tensor by tensor.

        Args:
            weights: every tensor of the student by its Hugging Face name; a tied head may come
                under its second name too.

        Raises:
            TeacherError: the teacher is frozen, or a tensor is missing or of another shape.
        """
        if self._decay is None:
            raise TeacherError(f"{self._settings.key}.follow_decay = null: it does not follow")
        missing = set(self._average)
        for name, tensor in weights:
            average = self._average.get(name)
            if average is None:
                continue
            if tensor.shape != average.shape:
                raise TeacherError(
                    f"the student's {name} has shape {list(tensor.shape)}, the teacher's "
                    f"{list(average.shape)}: they are not the same model"
                )
            average.lerp_(tensor.to(average), 1.0 - self._decay)
            missing.discard(name)
        if missing:
            raise TeacherError(f"the student's new weights lack {', '.join(sorted(missing))}")
        self._compute_with_average()

    def save(self, path: str) -> None:
        """Write the float32 average to a safetensors file."""
        arrays = {name: t.cpu().contiguous() for name, t in self._average.items()}
        with writing(Path(path)):
            save_file(arrays, path)

    @torch.no_grad()
    def load(self, path: str) -> None:
        """Go on from a saved average.

        Raises:
            TeacherError: it is of another model.
        """
        saved = load_file(path)
        shapes = {name: t.shape for name, t in self._average.items()}
        if {name: t.shape for name, t in saved.items()} != shapes:
            raise TeacherError(f"{path} holds the weights of another model than the student")
        for name, average in self._average.items():
            average.copy_(saved[name])
        self._compute_with_average()

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Have the student's own weights again, from its folder."""
        for name, tensor in self._from_file().items():
            self._average[name].copy_(tensor)
        self._compute_with_average()

    def _held(self) -> Iterator[torch.Tensor]:
        yield from super()._held()
        yield from self._average.values()

    def _from_file(self) -> dict[str, torch.Tensor]:
        """The student's parameters in float32, by name."""
        whole = load_causal_lm(
            str(self._settings.path),
            dtype=torch.float32,
            trust_remote_code=self._settings.trust_remote_code,
        )
        return {name: parameter.data for name, parameter in whole.named_parameters()}

    def _compute_with_average(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.data_ptr() != self._average[name].data_ptr():
                parameter.data.copy_(self._average[name])

    def close(self) -> None:
        """Free the weights."""
        super().close()
        del self._parameters, self._average
