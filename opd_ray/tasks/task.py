"""The task protocol and how a task is found: by its name here, or by "module:attr"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, runtime_checkable

from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object
from opd_ray.user_code import guarded, users_code


@runtime_checkable
class Task(Protocol):
    """Says whether a response is correct.

    A task may also have ``verify_many(pairs) -> list[bool]`` where judging together is quicker,
    ``gold_answer(answer) -> str``, the part of a gold text that counts, and ``gold_problem(answer)
    -> str | None``, why no response is likely to be right for it: both are asked before a run.
    Where ``needs_answer`` is False, problems may have no gold answer.
    """

    name: str

    def extract(self, response_text: str) -> str | None:
        """The final answer that a response gives, as text to vote on; None when it gives none."""
        ...

    def verify(self, response_text: str, answer: str) -> bool:
        """Whether the response's final answer is the gold ``answer``."""
        ...


# By their paths, so that only the task in use is imported.
_TASKS = {
    "chain_sum": "opd_ray.tasks.chain_sum:ChainSumTask",
    "environment": "opd_ray.tasks.environment_task:EnvironmentTask",
    "math": "opd_ray.tasks.math_task:MathTask",
}


@cache
def get_task(name: str) -> Task:
    """The task of that name, or the one at "module:attr" (a Task, or a class without arguments).

    The same object comes back for the same name, so that its worker processes are shared. What a
    task of the user's raises later is a UserCodeError.

    Raises:
        ConfigError: an unknown name, a missing module or object, what is no task, or what its
            module or constructor raises.
    """
    path = _TASKS.get(name, name)
    if ":" not in path:
        raise ConfigError(
            f'task = {name!r} is unknown: use one of {", ".join(sorted(_TASKS))}, or "module:attr"'
        )
    found = load_object(path, "task")
    said = f"task = {name!r}"
    with users_code(said, ConfigError):
        task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise ConfigError(f"{said} is no task: it needs name, extract and verify")
    return task if name in _TASKS else guarded(task, said)


def verify_many(task: Task, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """``task.verify`` for every (response text, gold answer), by its batch method if it has one."""
    together = getattr(task, "verify_many", None)
    if together is not None:
        return together(pairs)
    return [task.verify(response_text, answer) for response_text, answer in pairs]


def gold_answer(task: Task, answer: str) -> str:
    """The part of a gold answer that counts for the task: all of it where the task cannot tell."""
    shortened = getattr(task, "gold_answer", None)
    return answer if shortened is None else shortened(answer)


def gold_problem(task: Task, answer: str) -> str | None:
    """Why no response is likely to be right for this gold answer; None where nothing says so."""
    judged = getattr(task, "gold_problem", None)
    return None if judged is None else judged(answer)
