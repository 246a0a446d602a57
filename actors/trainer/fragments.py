"""What a rank holds of every parameter and its optimizer state, under any ZeRO stage.

DeepSpeed's optimizers step on tensors of their own, the *owners*: below stage 1 the parameters
themselves, from stage 1 on one flat float32 tensor (or several) with this rank's share of all
parameters. A fragment says which stretch of which parameter lies where in which owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

MASTER = "master"  # the float32 weight that the optimizer steps on
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by its own names
KINDS = (MASTER, *MOMENTS)


@dataclass(frozen=True)
class Fragment:
    """A stretch of one flattened parameter, and where its owner holds it."""

    name: str  # of the parameter
    start: int  # in the flattened parameter
    length: int
    owner: Tensor  # what the optimizer steps on
    offset: int  # in the flattened owner

    def of(self, whole: Tensor) -> Tensor:
        """``[length]``, of the owner or of one of its moments; a view where that is contiguous."""
        return whole.detach().reshape(-1).narrow(0, self.offset, self.length)


class Partition:
    """The parameters of a student, as one rank of a DeepSpeed engine holds them.

    Args:
        engine: DeepSpeed's.
        model: whose parameters it trains, as far as they are not frozen; a tied one counts once,
            under its first name.
        zero_stage: of the engine.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(
        self, engine: Any, model: nn.Module, *, zero_stage: int, rank: int, ranks: int
    ) -> None:
        self._optimizer = engine.optimizer  # from stage 1 on DeepSpeed's own around the next
        self._base: torch.optim.Optimizer = engine.basic_optimizer
        self._stage = zero_stage
        self._rank, self._ranks = rank, ranks
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shapes = {name: _shape(parameter) for name, parameter in named.items()}
        found = (self._fragment(name, parameter) for name, parameter in named.items())
        self.held = {one.name: one for one in found if one is not None}

    @property
    def own(self) -> list[Fragment]:
        """What this rank writes: the ranks' together are every parameter once."""
        held = list(self.held.values())
        if self._stage > 0:
            return held
        return [part for one in held if (part := self._share(one)).length]

    def steps(self) -> dict[str, int]:
        """How many optimizer steps each held parameter has seen."""
        return {name: self._steps(one.owner) for name, one in self.held.items()}

    def tensor(self, fragment: Fragment, kind: str) -> Tensor | None:
        """``[length]`` float32, of one of :data:`KINDS`; None: no step has made it yet."""
        if kind == MASTER:
            return fragment.of(fragment.owner)
        moments = self._base.state.get(fragment.owner)
        return fragment.of(moments[kind]) if moments else None

    def settle(self) -> None:
        """Let go of weights that ZeRO-3 has asked for ahead and nobody has come for (a collective).

        A forward pass without a backward pass leaves them; while they are under way no parameter
        can be gathered by itself.
        """
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()
            self._optimizer.checkpoint_event_epilogue()

    @torch.no_grad()
    def begin_loading(self, steps: Mapping[str, int]) -> None:
        """Make room for what :meth:`fill` brings.

        Args:
            steps: that each parameter has seen. An owner of several has one count: the largest.
        """
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()
        counts: dict[Tensor, int] = {}
        for name, one in self.held.items():
            counts[one.owner] = max(counts.get(one.owner, 0), steps[name])
        for owner, count in counts.items():
            if count == 0:
                self._base.state.pop(owner, None)
                continue
            moments = self._base.state[owner]
            for kind in MOMENTS:
                if kind in moments:
                    moments[kind].zero_()
                else:
                    moments[kind] = torch.zeros_like(owner)
            moments["step"] = self._step_count(owner, count)

    @torch.no_grad()
    def fill(self, name: str, kind: str, start: int, values: Tensor) -> None:
        """Take over values of a stretch of a parameter that is held here.

        Args:
            name: of the parameter.
            kind: one of :data:`KINDS`.
            start: of the stretch in the flattened parameter.
            values: ``[length]`` float32.
        """
        held = self.held[name]
        whole = held.owner if kind == MASTER else self._base.state[held.owner][kind]
        _write(whole.detach(), held.offset + start - held.start, values)

    @torch.no_grad()
    def end_loading(self) -> None:
        """Give the engine the weights that are the rounding of the masters (a collective)."""
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        if self._stage == 3:
            for number, master in enumerate(self._optimizer.fp32_partitioned_groups_flat):
                self._optimizer.fp16_partitioned_groups_flat[number].data.copy_(master.data)
                self._optimizer._unflatten_partitioned_parameters(number)
            self._optimizer.checkpoint_event_epilogue()

    def overlap(self, name: str, start: int, length: int) -> tuple[int, int] | None:
        """From where to where this stretch of a parameter is held here; None: nowhere."""
        held = self.held.get(name)
        if held is None:
            return None
        first, last = max(start, held.start), min(start + length, held.start + held.length)
        return (first, last) if first < last else None

    def __iter__(self) -> Iterator[tuple[Fragment, str, Tensor]]:
        """What this rank writes, tensor by tensor."""
        for one in self.own:
            for kind in KINDS:
                if (tensor := self.tensor(one, kind)) is not None:
                    yield one, kind, tensor

    def _fragment(self, name: str, parameter: nn.Parameter) -> Fragment | None:
        """What this rank holds of a parameter, if anything."""
        if self._stage == 0:
            return Fragment(name, 0, parameter.numel(), parameter, 0)
        if self._stage == 3:
            group, offset, length = self._optimizer.grad_position[
                self._optimizer.get_param_id(parameter)
            ]
            start = self._rank * length
            # The last shares of a parameter are filled up beyond its end.
            length = min(length, int(parameter.ds_numel) - start)  # type: ignore[attr-defined]
            owner = self._optimizer.fp32_partitioned_groups_flat[group]
            return Fragment(name, start, length, owner, offset) if length > 0 else None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        (owner,) = self._base.param_groups[mapping.param_group_index]["params"]
        return Fragment(name, here.start, here.numel, owner, there.start)

    def _share(self, whole: Fragment) -> Fragment:
        """This rank's part of what all ranks hold alike."""
        first = whole.length * self._rank // self._ranks
        last = whole.length * (self._rank + 1) // self._ranks
        return replace(whole, start=first, length=last - first, offset=first)

    def _steps(self, owner: Tensor) -> int:
        moments = self._base.state.get(owner)
        return int(moments["step"]) if moments else 0

    def _step_count(self, owner: Tensor, count: int) -> Tensor | int:
        """As the optimizer counts: torch's on the device, DeepSpeed's for host memory in Python."""
        if type(self._base) is torch.optim.AdamW:
            return torch.tensor(float(count), device=owner.device)
        return count


def _shape(parameter: nn.Parameter) -> list[int]:
    """Also of one that ZeRO-3 has sharded."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def _write(whole: Tensor, offset: int, values: Tensor) -> None:
    """Put ``values`` into the flattened ``whole``, also where that is not contiguous."""
    if whole.is_contiguous():
        whole.view(-1).narrow(0, offset, len(values)).copy_(values)
        return
    flat = whole.reshape(-1)
    flat.narrow(0, offset, len(values)).copy_(values)
    whole.copy_(flat.view(whole.shape))
