"""Configuration files: where a name leads, and the chain of files that one inherits from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from opd_ray.borders import border
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
    if name_or_path.endswith(SUFFIXES):
        path = (beside or Path()) / name_or_path
        if not path.is_file():
            raise ConfigError(f"no config file {path}")
        return path
    if name_or_path in packaged_names():
        return packaged_folder() / f"{name_or_path}.yaml"
    near = difflib.get_close_matches(name_or_path, packaged_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(packaged_names())}"
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
    """A YAML mapping as plain Python (1e-6 is a number, a repeated key an error)."""
    with border(str(path), "write keys and values as YAML, in UTF-8", ConfigError):
        try:
            values = OmegaConf.to_container(OmegaConf.load(path))
        except YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(values).__name__}")
    return values
