"""How long a text a model reads, from its config alone, rotary positions of every kind included.

vLLM and transformers read scaled positions (RoPE) alike up to this length and not beyond, so it is
what rollouts, trainers and teachers go by. With ``n`` for ``max_position_embeddings`` and ``o`` for
``original_max_position_embeddings``:

===================== =============== ==========================================================
``rope_type``         length          why
===================== =============== ==========================================================
default, llama3, ...  n               frequencies do not depend on the length
linear, ntk           factor x n      positions are divided by the factor
yarn, deepseek_yarn   factor x o      vLLM has so many rows; by itself it allows only n
dynamic               n               beyond, transformers' frequencies follow the longest text,
                                      and vLLM has no rows
longrope, su          o               beyond, vLLM reads every text with the long factors,
                                      transformers only those that are longer than o
===================== =============== ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Where configs keep their length; the smallest counts, unless the last is there.
_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
    "model_max_length",
)
# Of a config without any of them: such positions (ALiBi, recurrent states) have no end.
UNLIMITED = 2**31 - 1

_STRETCHED = frozenset({"linear", "ntk"})
_YARN = frozenset({"yarn", "deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn"})
_LONG = frozenset({"longrope", "su"})
# Those that transformers computes; without them neither trainer nor hf teacher has positions.
_COMPUTED = frozenset(
    {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "mrope", "axial"}
)


def context_length(config: Mapping[str, Any]) -> int:
    """Longest text, tokens, that both engines read alike; UNLIMITED where nothing ends it.

    ``config`` is a config.json, or ``to_dict()`` of a transformers config.
    """
    text = text_part(config)
    length = _plain_length(text)
    if length is None:
        return UNLIMITED
    # Gemma 3's length is a scaled one already.
    if "gemma3" in str(text.get("model_type")):
        return length
    scaled = [rope for rope in _ropes(text) if _kind(rope) != "default"]
    return min((_scaled_length(text, rope, length) for rope in scaled), default=length)


def context_remark(config: Mapping[str, Any]) -> str | None:
    """Why a text may not be longer, where the config seems to allow it."""
    text = text_part(config)
    kinds = {_kind(rope) for rope in _ropes(text)}
    if "dynamic" in kinds:
        return (
            "its rope_type is dynamic, whose frequencies beyond max_position_embeddings follow the "
            "longest text read, so that vLLM and transformers part there"
        )
    if kinds & _LONG and context_length(config) < (_plain_length(text) or 0):
        return (
            "its rope_type is longrope, with which vLLM and transformers part where texts beyond "
            "original_max_position_embeddings are allowed"
        )
    return None


def unknown_rope(config: Mapping[str, Any]) -> str | None:
    """The rope_type that transformers does not compute, if there is one."""
    return next((k for k in map(_kind, _ropes(text_part(config))) if k not in _COMPUTED), None)


def engine_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM must be told of a config so that it reads it up to :func:`context_length`.

    Values for ``hf_overrides`` of its ``EngineArgs``; empty for most models.
    """
    text = text_part(config)
    length, plain = context_length(config), _plain_length(text)
    kinds = {_kind(rope) for rope in _ropes(text)}
    found: dict[str, Any] = {}
    if plain is not None and kinds & _YARN and length > plain:
        found["max_position_embeddings"] = length
    if kinds & _LONG:
        # Where vLLM looks for it when it chooses a length itself.
        found["original_max_position_embeddings"] = length
    parameters = _scaling(text)
    if isinstance(parameters.get("factor"), int) and kinds <= _STRETCHED:
        # vLLM takes a whole number for a list of factors.
        found["rope_parameters"] = {
            "rope_theta": text.get("rope_theta", 10000.0),
            **parameters,
            "rope_type": _kind(parameters),
            "factor": float(parameters["factor"]),
        }
    return {"text_config": found} if found and text is not config else found


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that reads more than text, what its config says of the text model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _plain_length(text: Mapping[str, Any]) -> int | None:
    if text.get("model_max_length"):
        return int(text["model_max_length"])
    return min((int(text[key]) for key in _KEYS if text.get(key) is not None), default=None)


def _scaling(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The older spelling counts where both are there, as in transformers."""
    found = text.get("rope_scaling") or text.get("rope_parameters")
    return found if isinstance(found, Mapping) else {}


def _ropes(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parameters of all layers, or those of each kind of layers."""
    scaling = _scaling(text)
    inner = [value for value in scaling.values() if isinstance(value, Mapping)]
    yield from inner or ([scaling] if scaling else [])


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _scaled_length(text: Mapping[str, Any], rope: Mapping[str, Any], length: int) -> int:
    kind, factor = _kind(rope), rope.get("factor")
    own = text.get("original_max_position_embeddings")
    original = own or rope.get("original_max_position_embeddings") or length
    if kind in _STRETCHED and factor is not None:
        return int(length * factor)
    if kind in _YARN and factor is not None:
        return int(original * factor)
    if kind in _LONG:
        return min(length, int(original))
    return length
