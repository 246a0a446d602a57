"""Every error class of the project is known as such, and says whose fault it is."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

import actors
import opd_ray
from actors.teacher.protocol import TeacherError
from opd_ray.data.rows import DataError
from opd_ray.errors import BAD_INPUT, INTERRUPTED, RUN_FAILED, ConfigError, exit_code, is_known
from opd_ray.output.checkpoint import CheckpointError
from opd_ray.tip import MissingScoreError


def exceptions_defined() -> dict[str, set[str]]:
    """Every exception class in both packages with the names of all it derives from."""
    bases: dict[str, list[str]] = {}
    for package in (opd_ray, actors):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = [ast.unparse(base).split(".")[-1] for base in node.bases]

    def ancestors(name: str) -> set[str]:
        if name in bases:
            return set(bases[name]).union(*(ancestors(base) for base in bases[name]))
        known = getattr(builtins, name, None)
        return {parent.__name__ for parent in known.__mro__} if isinstance(known, type) else set()

    found = {name: ancestors(name) for name in bases}
    return {name: above for name, above in found.items() if "BaseException" in above}


def test_every_error_class_is_known_and_tells_bad_input_from_a_run_that_failed() -> None:
    defined = exceptions_defined()
    assert defined.keys() >= {"OpdError", "TeacherError", "MissingScoreError", "BadRow"}
    for name, above in defined.items():
        if name != "OpdError":
            assert "OpdError" in above, name
            assert len({"ValueError", "RuntimeError"} & above) == 1, name


@pytest.mark.parametrize(
    ("error", "known", "code"),
    [
        (ConfigError("x"), True, BAD_INPUT),
        (DataError("x"), True, BAD_INPUT),
        (MissingScoreError("jsd", "tip.rule=x"), True, BAD_INPUT),
        (CheckpointError("x"), True, BAD_INPUT),
        (TeacherError("x"), True, RUN_FAILED),
        (ValueError("a bug"), False, RUN_FAILED),
        (RuntimeError("a bug"), False, RUN_FAILED),
        (KeyboardInterrupt(), False, INTERRUPTED),
    ],
)
def test_known_errors_and_their_exit_codes(error: BaseException, known: bool, code: int) -> None:
    assert is_known(error) == known
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("cause", "known", "code"),
    [
        (ConfigError("teacher.topk = 0"), True, BAD_INPUT),
        (TeacherError("no such model"), True, RUN_FAILED),
        (ValueError("a bug"), False, RUN_FAILED),
    ],
)
def test_an_error_that_ray_brings_from_an_actor_is_known_as_its_cause_is(
    cause: Exception, known: bool, code: int
) -> None:
    brought = RayTaskError("score", "Traceback ...", cause).as_instanceof_cause()
    assert isinstance(brought, RayTaskError)
    assert is_known(brought) == known
    assert exit_code(brought) == code
