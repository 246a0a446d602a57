"""The task whose responses are judged by the environment that they act in."""

from __future__ import annotations

from collections.abc import Mapping

from opd_ray.errors import RunError

# Of what an environment's verify says: 1 where the rollout did what was asked.
SUCCESS = "success"


class EnvironmentTask:
    """A response is right where ``verify`` of its environment says ``success``: 1."""

    name = "environment"
    needs_answer = False

    def extract(self, response_text: str) -> str | None:
        """The text of the last turn; None where it is empty."""
        return response_text.strip() or None

    def verify(self, response_text: str, answer: str) -> bool:
        """Not by its text: see :meth:`succeeded`."""
        raise RunError("the task environment judges rollouts, not texts: it is one of eval alone")

    def succeeded(self, place: str, figures: Mapping[str, float], *, hung: bool) -> bool:
        """Whether the rollout with these figures of its environment is right.

        Args:
            place: what messages call the rollout.
            figures: by the names that ``verify`` gave them.
            hung: whether a call into the environment was given up. It may say nothing then, and
                its rollout is wrong.

        Raises:
            RunError: it says something else alone, or nothing.
        """
        if SUCCESS not in figures and (figures or not hung):
            raise RunError(
                f"{place}: its environment's verify says {', '.join(figures) or 'nothing'}, and no "
                f"{SUCCESS!r}: return it too, 1 where the rollout did what was asked, or take "
                "another task"
            )
        return figures.get(SUCCESS, 0.0) >= 1.0
