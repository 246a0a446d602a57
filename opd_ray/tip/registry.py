"""Find a selection rule by name, or by import path if it is a user's own."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from difflib import get_close_matches

from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object
from opd_ray.tip import rules
from opd_ray.tip.rule import Rule
from opd_ray.user_code import users_code


def rule_names() -> tuple[str, ...]:
    """Names of the rules that come with the library."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(rules.__path__)))


def find_rule(name: str) -> Rule:
    """The rule of that name, or at that import path: "package.module:rule".

    Behind an import path may be a :class:`Rule` (what the decorator ``selection_rule`` makes of a
    function), or a class without constructor arguments that has ``needs``, ``keeps`` and a method
    ``score(inputs)``.

    Raises:
        ValueError: there is no such rule or it is of another kind.
        ConfigError: what the user's module or constructor raises, with its file and line.
    """
    if ":" not in name:
        names = rule_names()
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"no rule is called {name!r}; {hint}choose one of {', '.join(names)}, "
                'or give your own as "package.module:rule"'
            )
        return replace(importlib.import_module(f"{rules.__name__}.{name}").score, name=name)
    found = load_object(name, "tip.rule")
    if isinstance(found, type):
        with users_code(f"tip.rule = {name!r}", ConfigError):
            found = found()
    if isinstance(found, Rule):
        return replace(found, name=name)
    if not all(hasattr(found, part) for part in ("score", "needs", "keeps")):
        raise ValueError(
            f"{name!r} is no rule: decorate the function with "
            "@opd_ray.tip.selection_rule(needs=..., keeps=...), "
            "or give a class with needs, keeps and score(inputs)"
        )
    return Rule(name=name, score=found.score, needs=found.needs, keeps=found.keeps)
