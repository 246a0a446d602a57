"""What a tool answers in place of a result."""

from __future__ import annotations

from opd_ray.errors import RunError


class Refusal(RunError):
    """A tool cannot do what it is asked; the message is what the student reads."""
