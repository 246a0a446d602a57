"""Tasks: what a correct response is. ``get_task`` finds one by name or import path."""

from opd_ray.tasks.task import Task, get_task, gold_answer, gold_problem, verify_many

__all__ = ["Task", "get_task", "gold_answer", "gold_problem", "verify_many"]
