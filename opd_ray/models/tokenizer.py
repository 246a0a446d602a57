"""What a model's config and tokenizer files say, and the fingerprint by which tokenizers compare.

No weights are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border, first_line
from opd_ray.errors import OpdError
from opd_ray.models.context import context_length, context_remark, unknown_rope
from opd_ray.types import TeacherInfo

# Digits, spaces, line breaks, quotes, code, accents, other scripts, an emoji: where they part.
PROBES = (
    "What is 1234 + 56.7?\n\nLet's see:  12*34 = 408.",
    "def f(x):\n\treturn x**2  # café, naïve",
    "Ответ: 答案是 42 🙂",
)
# Differences that a user may accept in which two tokenizers have one fingerprint.
_OUTSIDE_THE_FINGERPRINT = frozenset({"probes", "chat_template"})


class ModelFactsError(OpdError, ValueError):
    """A model whose config or tokenizer cannot be read."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config and tokenizer files say; no weights are read."""

    path: str
    tokens: dict[int, str]  # id -> token, added tokens included
    merges: tuple[str, ...]  # in order; empty where the tokenizer has none
    special_tokens: dict[str, str]  # role -> token, without end of sequence and padding
    eos_ids: tuple[int, ...]
    pad_id: int | None
    rows: int  # of the embedding, padding rows included
    context_length: int  # tokens of the longest text that it reads
    context_remark: str | None  # why not of longer ones, where its config seems to allow them
    unknown_rope: str | None  # a rope_type that trainers do not know
    chat_template: str | None
    tokenizer_hash: str
    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        """Tokens that a run speaks of; see :func:`vocabulary_size`."""
        return vocabulary_size(self.tokenizer)


def describe_model(path: str, *, trust_remote_code: bool = False) -> ModelFacts:
    """Facts of the model in a folder (or of a hub name).

    Raises:
        ModelFactsError: its config or tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    config = _read_config(path, trust_remote_code)
    with border(*_folder_at(path), ModelFactsError):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer(PROBES[0])  # some of what is wrong with it shows only here
    text_config = config.get_text_config()
    whole = config.to_dict()
    return ModelFacts(
        path=path,
        tokens={number: token for token, number in tokenizer.get_vocab().items()},
        merges=_merges(tokenizer),
        special_tokens={
            role: str(token)
            for role, token in tokenizer.special_tokens_map.items()
            if role not in ("eos_token", "pad_token")
        },
        eos_ids=_eos_ids(path, config, tokenizer),
        pad_id=tokenizer.pad_token_id,
        rows=text_config.vocab_size,
        context_length=context_length(whole),
        context_remark=context_remark(whole),
        unknown_rope=None if trust_remote_code else unknown_rope(whole),
        chat_template=tokenizer.chat_template,
        tokenizer_hash=tokenizer_hash(tokenizer),
        tokenizer=tokenizer,
    )


def model_config(path: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The model's config with every default filled in, as nested plain values.

    Raises:
        ModelFactsError: it cannot be read.
    """
    return _read_config(path, trust_remote_code).to_dict()


def vocabulary_size(tokenizer: Any) -> int:
    """Token ids that a loaded tokenizer knows: one more than the highest.

    Ids below it that no token has count too, as they do in the model; ``len(tokenizer)`` leaves
    them out and so cuts off as many real tokens at the end.
    """
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_hash(tokenizer: Any) -> str:
    """Fingerprint of a loaded tokenizer: vocabulary, merges and which tokens are special."""
    special = sorted(
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    )
    content = (sorted(tokenizer.get_vocab().items()), _merges(tokenizer), special)
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def fingerprints_may_differ(accept: Iterable[str]) -> bool:
    """Whether one of the accepted differences gives two tokenizers two fingerprints."""
    return bool(set(accept) - _OUTSIDE_THE_FINGERPRINT)


def fingerprint_problems(info: TeacherInfo, student_hash: str, accept: Iterable[str]) -> list[str]:
    """That a teacher says it has another tokenizer, unless ``accept`` names what may be the cause.

    A teacher that does not say which it has (None) is not refused: see
    ``preflight.pairing``.
    """
    if info.tokenizer_hash in (None, student_hash) or fingerprints_may_differ(accept):
        return []
    return [
        f"its tokenizer's fingerprint is {info.tokenizer_hash}, the student's is {student_hash}: "
        "serve a teacher with the student's tokenizer"
    ]


def _read_config(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    with border(*_folder_at(path), ModelFactsError):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def _folder_at(path: str) -> tuple[str, str]:
    """Place and remedy where a model's files cannot be read."""
    return (
        f"{path}: no readable config and tokenizer there",
        "give a Hugging Face folder that holds config.json and the tokenizer's files",
    )


def _merges(tokenizer: Any) -> tuple[str, ...]:
    if not tokenizer.is_fast:
        return ()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges", [])
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)


def _eos_ids(path: str, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Where vLLM stops: generation config, else model config; and the tokenizer's own.

    Raises:
        ModelFactsError: a generation_config.json that cannot be read (vLLM passes it over), or ends
            that are no token ids.
    """
    from transformers import GenerationConfig

    file = Path(path) / "generation_config.json"
    try:
        named = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError as error:
        if file.is_file():
            raise ModelFactsError(
                f"{file}: {first_line(error)}; mend it, or delete it to go by config.json alone"
            ) from error
        named = GenerationConfig.from_model_config(config).eos_token_id
    ids = named if isinstance(named, list) else [named] if named is not None else []
    if not all(isinstance(number, int) for number in ids):
        raise ModelFactsError(
            f"{path}: eos_token_id is {named!r}; give token ids in generation_config.json and "
            "config.json"
        )
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(sorted({*ids, *own}))
