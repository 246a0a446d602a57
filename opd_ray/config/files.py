"""Configuration files: where a name leads, and the chain of files that one inherits from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.config.paths import expanded
from opd_ray.config.schema import Config
from opd_ray.config.words import read_document
from opd_ray.errors import ConfigError

INHERIT = "inherit"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Layer:
    """One file's own keys, without what it inherits."""

    source: str
    values: dict[str, Any]


def packaged_folder() -> Path:
    """The folder of the configs that come with the package."""
    return Path(str(resources.files("configs")))


def packaged_names() -> list[str]:
    """The names that ``--config NAME`` takes, e.g. "demo"."""
    folder = packaged_folder()
    files = folder.rglob("*.yaml")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def find(name_or_path: str, beside: Path | None = None) -> Path:
    """The file meant: a path if it ends in .yaml or .yml, else a packaged config's name.

    Relative paths start at ``beside``, or at the current directory.

    Raises:
        ConfigError: there is no such file; names the nearest packaged config.
    """
    packaged = packaged_names()
    if name_or_path in packaged:
        return packaged_folder() / f"{name_or_path}.yaml"
    path = (beside or Path()) / expanded(name_or_path, "config")
    if name_or_path.endswith(SUFFIXES):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: give a file in it")
        if not path.is_file():
            raise ConfigError(f"no config file {path}")
        return path
    if path.exists():
        inside = path / "config.yaml"
        what = (
            f"a folder: did you mean {inside}?" if inside.is_file() else "no file ending in .yaml"
        )
        raise ConfigError(f"config {name_or_path!r} is {what}")
    near = difflib.get_close_matches(name_or_path, packaged, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(packaged)}"
    raise ConfigError(
        f"no packaged config is called {name_or_path!r}: {hint} "
        "(a file of your own is given by its path, ending in .yaml)"
    )


def layers(name_or_path: str) -> list[Layer]:
    """The file and everything it inherits, in the order in which they are laid over each other.

    Raises:
        ConfigError: a missing file, bad YAML, or an inheritance that runs in a circle.
    """
    return _layers(find(name_or_path), ())


def _layers(path: Path, inheriting: tuple[Path, ...]) -> list[Layer]:
    if path.resolve() in inheriting:
        circle = " -> ".join(step.name for step in (*inheriting, path))
        raise ConfigError(f"{path}: '{INHERIT}' runs in a circle: {circle}")
    values = read_yaml(path)
    parents = values.pop(INHERIT, None) or []
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise ConfigError(f"{path}: {INHERIT} = {parents!r}: expected a config's name or a list")
    found: list[Layer] = []
    for parent in parents:
        try:
            parent_path = find(parent, beside=path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {INHERIT}: {error}") from None
        found += _layers(parent_path, (*inheriting, path.resolve()))
    return [*found, Layer(str(path), values)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file's keys as plain Python, every word read as its key says.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no keys.
    """
    with border(str(path), "give a readable file of UTF-8 text", ConfigError):
        text = path.read_text(encoding="utf-8-sig")
    values = read_document(text, Config, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(values).__name__}")
    return values
