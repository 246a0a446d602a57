"""Blocks that import much: no collection while they do, and none goes through it afterwards."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from opd_ray.importing import importing


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As it was; what other tests froze stays so."""
    yield
    gc.enable()


def test_the_collector_rests_and_what_was_imported_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"made_up_{number}" for number in range(1000)]
    frozen = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        for name in names:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen + len(names)


def test_where_nothing_is_left_to_import_nothing_is_frozen() -> None:
    gc.collect()
    frozen = gc.get_freeze_count()
    garbage: list[object] = []
    garbage.append(garbage)
    with importing():
        import json  # noqa: F401
    assert gc.get_freeze_count() <= frozen  # what others froze may end meanwhile
    del garbage
    assert gc.collect() > 0


def test_it_collects_again_after_an_error_and_not_where_it_did_not_before() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), importing():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()
