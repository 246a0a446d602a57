"""Objects of the user's own by import path: what is missing is named, their errors are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_things.py").write_text("nothing = None\n")
    (tmp_path / "own_needy.py").write_text("import no_such_library\n")
    (tmp_path / "own_broken.py").write_text("from math import no_such_name\n")


def test_an_object_is_found_even_if_it_is_none() -> None:
    assert load_object("pathlib:Path", "a.key") is Path
    assert load_object("own_things:nothing", "a.key") is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_things", "a.key = 'own_things': write it as package.module:object"),
        ("own_things:", "a.key = 'own_things:': write it as package.module:object"),
        (":nothing", "a.key = ':nothing': write it as package.module:object"),
        ("gone.away:x", "a.key = 'gone.away:x' cannot be imported: No module named 'gone'; set PY"),
        (
            "own_needy:x",
            "'own_needy:x' cannot be imported: ModuleNotFoundError: No module named "
            "'no_such_library' (",
        ),
        ("own_things:x", "'own_things:x' cannot be imported: own_things has no 'x'; define it"),
    ],
)
def test_what_is_missing_is_named_with_its_key(path: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_object(path, "a.key")
    assert said in str(raised.value)


def test_what_the_users_module_raises_is_named_by_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "own_undecided.py").write_text(
        "from opd_ray.tip import selection_rule\n"
        "@selection_rule(needs=(), keeps='best')\n"
        "def x(inputs): ...\n"
    )
    (tmp_path / "own_faulty.py").write_text("x = 1\ny = {\n")
    modules = {"own_broken": 1, "own_needy": 1, "own_undecided": 2, "own_faulty": 2}
    for module, line in modules.items():
        with pytest.raises(ConfigError) as raised:
            load_object(f"{module}:x", "a.key")
        assert f"({tmp_path / module}.py, line {line}" in str(raised.value)
    assert isinstance(raised.value.__cause__, SyntaxError)
