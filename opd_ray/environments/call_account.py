"""What became of the tool calls of a rollout."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class CallAccount:
    """What became of the calls of a rollout."""

    calls: int = 0
    parse_error: int = 0
    unknown: int = 0
    failed: int = 0  # the tool raised
    timeout: int = 0
    cut: int = 0  # results that were shortened
    tool_seconds: float = 0.0  # in tools, waiting for a free thread included

    def figures(self) -> dict[str, float]:
        """By name."""
        return {name: float(value) for name, value in asdict(self).items()}
