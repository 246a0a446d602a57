"""The student's output head, able to lend its weight to a fused loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# (hidden_ND, weight_VD, bias_V or None) -> tensors
HeadFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


class DivergenceHead(nn.Linear):
    """A linear head that gives logits, or what a function makes of hidden states and its weight.

    The fused loss needs the weight itself, never the logits of all rows. It is handed over inside
    ``forward``, because ZeRO-3 gathers a sharded weight in hooks around ``nn.Module.__call__``.
    """

    @classmethod
    def over(cls, head: nn.Linear) -> DivergenceHead:
        """A head with the very Parameters of ``head``, so that tying and names stay as they are."""
        new = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        new.weight = head.weight
        new.bias = head.bias
        return new

    def forward(  # type: ignore[override]
        self, hidden: Tensor, function: HeadFunction | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Logits ``[..., V]`` of ``hidden`` ``[..., D]``, or ``function(hidden, weight, bias)``."""
        if function is None:
            return super().forward(hidden)
        return function(hidden, self.weight, self.bias)
