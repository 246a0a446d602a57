"""Parsers of tool calls by their names in a configuration."""

from __future__ import annotations

from opd_ray.environments.calls import CallParser
from opd_ray.errors import ConfigError
from opd_ray.import_path import load_object
from opd_ray.user_code import users_code

_PARSERS = {
    "hermes": "opd_ray.environments.parsers.hermes:HermesParser",
    "llama3_json": "opd_ray.environments.parsers.llama3_json:Llama3JsonParser",
    "qwen3_coder": "opd_ray.environments.parsers.qwen3_coder:Qwen3CoderParser",
}


def parser_names() -> tuple[str, ...]:
    """Names of the parsers that come with the library."""
    return tuple(_PARSERS)


def get_parser(name: str, key: str) -> CallParser:
    """The parser of that name, or of a class without arguments at "package.module:Class".

    Args:
        name: as the user wrote it.
        key: the configuration key that holds it, for messages.

    Raises:
        ConfigError: no such parser, or what is none.
    """
    path = _PARSERS.get(name, name)
    if ":" not in path:
        raise ConfigError(
            f"{key} = {name!r} is unknown: use one of {', '.join(_PARSERS)}, or "
            "package.module:Class of your own"
        )
    found = load_object(path, key)
    if not callable(found):
        raise ConfigError(f"{key} = {name!r} cannot be called: name a class without arguments")
    with users_code(f"{key} = {name!r}", ConfigError):
        parser: CallParser = found()
    if not callable(getattr(parser, "parse", None)):
        raise ConfigError(
            f"{key} = {name!r} is no parser of tool calls: it needs parse(text, tools)"
        )
    return parser
