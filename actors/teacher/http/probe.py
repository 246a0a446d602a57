"""What a server must offer to be a teacher, asked for before a run depends on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from actors.teacher.http.client import HttpClient, Reply
from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.tokenizer import PROBES

# A wrong URL is to be said soon; once the run has begun, a server that restarts has more time.
_PROBE_RETRIES = 2


@dataclass(frozen=True)
class Served:
    """A model that a server offers and that can judge."""

    model: str
    context_length: int  # longest prompt plus response that it scores, tokens


def named_tokens(settings: TeacherSettings, vocab_size: int, own_topk: int = 0) -> int:
    """How many of its likeliest tokens the server is asked for at each position."""
    return min(max(settings.named_tokens, settings.topk, own_topk), vocab_size)


def check_server(
    settings: TeacherSettings,
    tokenizer: Any,
    vocab_size: int,
    *,
    context_length: int,
    own_topk: int = 0,
) -> Served:
    """Ask a server for everything that a run will need of it; nothing else need be loaded.

    Args:
        settings: of kind http.
        tokenizer: the student's, of the transformers library.
        vocab_size: real tokens of the student.
        context_length: longest prompt plus response of the run, tokens.
        own_topk: how many of its own likeliest tokens the run's rule needs; 0: none.

    Raises:
        TeacherError: listing what the server lacks, each with a remedy.
    """

    async def ask() -> Served:
        async with HttpClient(settings, _PROBE_RETRIES) as client:
            served = await probe(client, settings, vocab_size, own_topk)
            problems = []
            if said := await _other_tokenizer(client, settings, served.model, tokenizer):
                problems.append(said)
            if served.context_length < context_length:
                problems.append(
                    f"its context (max_model_len) is {served.context_length + 1} tokens, the run "
                    f"needs {context_length + 1}, one more than student.context_length: start it "
                    f"with --max-model-len {context_length + 1}, or lower student.context_length"
                )
            if problems:
                raise _refusal(settings, *problems)
            return served

    return asyncio.run(ask())


async def probe(
    client: HttpClient, settings: TeacherSettings, vocab_size: int, own_topk: int = 0
) -> Served:
    """Whether the server can score token ids; which model, and how long its sequences may be.

    Raises:
        TeacherError: naming what it lacks.
    """
    entry = await _model(client, settings)
    key, model = settings.key, entry["id"]
    named = named_tokens(settings, vocab_size, own_topk)
    for what, tokens, asked, remedy in (
        ("prompt log-probabilities", [0, 0], 0, "use a server that takes prompt_logprobs (vLLM)"),
        (
            f"token id {vocab_size - 1}, the student's highest",
            [vocab_size - 1] * 2,
            0,
            "serve a teacher with the student's tokenizer",
        ),
        (
            f"its {named} likeliest tokens at a position",
            [0, 0],
            named,
            f"start it with --max-logprobs {named}, or lower {key}.named_tokens and teacher.topk",
        ),
    ):
        reply = await client.ask("/completions", scoring_body(model, tokens, asked))
        if said := _not_scored(reply, asked):
            raise _refusal(settings, f"it cannot give {what} ({said}): {remedy}")
    problems = []
    if own_topk and named < vocab_size:
        problems.append(
            f"tip.rule needs the teacher's log-probability of every token of the student's top-K, "
            f"which this server tells of its {named} likeliest tokens alone: use another rule, "
            f"{key}.kind=vllm, or {key}.named_tokens of the whole vocabulary"
        )
    length = entry.get("max_model_len")
    if length is None:
        problems.append("GET /models does not say max_model_len: use a server that does (vLLM)")
    elif type(length) is not int or length < 2:
        problems.append(f"GET /models says max_model_len = {length!r:.80}: it must be a length")
    if problems:
        raise _refusal(settings, *problems)
    # One token is generated with every prompt.
    return Served(model, int(length or 0) - 1)


def scoring_body(model: str, tokens: list[int], named: int) -> dict[str, Any]:
    """The body of a completion request that scores ``tokens``, with ``named`` likeliest tokens."""
    return {
        "model": model,
        "prompt": tokens,
        "add_special_tokens": False,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": named,
        "return_token_ids": True,
    }


async def _model(client: HttpClient, settings: TeacherSettings) -> dict[str, Any]:
    """The entry of the wanted model in the server's list."""
    reply = await client.ask("/models")
    if reply.status in (401, 403):
        key = settings.api_key_env
        remedy = f"the key in {key} is wrong" if key else f"set {settings.key}.api_key_env"
        raise _refusal(settings, f"the server wants another API key ({reply.complaint}): {remedy}")
    entries = reply.body.get("data") if reply.ok and isinstance(reply.body, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise _refusal(
            settings,
            f"GET /models gives no list of models ({reply.complaint}): the URL ends in /v1",
        )
    names = [str(entry["id"]) for entry in entries]
    wanted = settings.model
    if wanted is None and len(names) == 1:
        return entries[0]
    if wanted not in names:
        offers = ", ".join(names) or "none"
        raise _refusal(settings, f"{settings.key}.model = {wanted!r}, the server offers {offers}")
    return entries[names.index(wanted)]


def _not_scored(reply: Reply, named: int) -> str | None:
    """What is wrong with the reply to a scoring request that asked for ``named`` tokens."""
    if not reply.ok:
        return reply.complaint
    try:
        given = len(reply.body["choices"][0]["prompt_logprobs"][1])
    except (KeyError, IndexError, TypeError):
        return "its answer has no prompt_logprobs"
    return None if given >= max(1, named) else f"it gave {given}"


async def _other_tokenizer(
    client: HttpClient, settings: TeacherSettings, model: str, tokenizer: Any
) -> str | None:
    """The first probe text that the server splits otherwise than the student, in words."""
    # vLLM has this route beside those of the API's version.
    url = f"{str(settings.url).rstrip('/').removesuffix('/v1')}/tokenize"
    texts = [*PROBES, *filter(None, (tokenizer.eos_token, tokenizer.pad_token))]
    for text in texts:
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        reply = await client.ask(url, body)
        tokens = reply.body.get("tokens") if reply.ok and isinstance(reply.body, dict) else None
        if not isinstance(tokens, list):
            if settings.path is not None:
                return None  # its tokenizer's files are compared with the student's
            return (
                f"its tokenizer cannot be compared with the student's (POST /tokenize: "
                f"{reply.complaint}): set {settings.key}.path to a folder with the served model's "
                "config.json and tokenizer"
            )
        mine = tokenizer.encode(text, add_special_tokens=False)
        if mine != tokens and "probes" not in settings.accept_mismatch:
            return (
                f"it splits text otherwise: {text!r} becomes {tokens[:12]}, in the student "
                f"{mine[:12]}: serve a teacher with the student's tokenizer, or accept it with "
                f"{settings.key}.accept_mismatch=[probes]"
            )
    return None


def _refusal(settings: TeacherSettings, *problems: str) -> TeacherError:
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return TeacherError(f"{settings.key}.url = {settings.url!r} cannot be the teacher:{listed}")
