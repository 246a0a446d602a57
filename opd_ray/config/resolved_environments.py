"""The environments of a run in full: ``environment``, and what ``environments`` lays over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings


def resolve_environments(
    main: EnvironmentSettings, others: Mapping[str, Mapping[str, Any]]
) -> EnvironmentSet:
    """The environments of a configuration's sections ``environment`` and ``environments``.

    What a source does not say is as in the section ``environment``; that one's arguments belong to
    its class, and hold for no other.
    """
    by_source = {}
    for source, own in others.items():
        same = own.get("path", main.path) == main.path
        arguments = _laid_over(main.arguments if same else {}, own.get("arguments", {}))
        by_source[source] = replace(main, **{**own, "arguments": arguments})
    return EnvironmentSet(main, by_source)


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with what another says, as files inherit."""
    found = dict(base)
    for key, value in own.items():
        below = found.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _laid_over(below, value)
        found[key] = value
    return found
