"""A tokenizer's chat template: how it is applied, and what it makes of any conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

from opd_ray.borders import border
from opd_ray.config.data import ChatTemplate, DataSettings
from opd_ray.data.rows import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

# The function by which templates read the clock.
_CLOCK = "strftime_now"
# A conversation that every template can write, to see what stands between its two messages.
_QUESTION, _ANSWER = "How many are seven and five?", "Twelve of them."


def uses_chat_template(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, section: str = "data"
) -> bool:
    """Whether prompts go through the tokenizer's chat template.

    Raises:
        DataError: the settings, which messages call ``section``, ask for a template and the
            tokenizer has none.
    """
    has_one = tokenizer.chat_template is not None
    if settings.chat_template == ChatTemplate.always and not has_one:
        raise DataError(
            f"{section}.chat_template = always, but the student's tokenizer has no chat template: "
            "use never, or a tokenizer with one"
        )
    return has_one and settings.chat_template != ChatTemplate.never


def reads_clock(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, section: str = "data"
) -> bool:
    """Whether prompts come to depend on the day on which they are written."""
    return uses_chat_template(tokenizer, settings, section) and _CLOCK in _source(
        tokenizer, settings, section
    )


def template_options(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, day: date | None
) -> dict[str, Any]:
    """The variables that a template is given beside messages and tools."""
    options = dict(settings.chat_template_kwargs)
    if day is not None and _CLOCK in _source(tokenizer, settings):
        at = datetime.combine(day, time())
        options.setdefault(_CLOCK, at.strftime)
    return options


def apply_chat_template(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    day: date | None = None,
    *,
    opened: bool = True,
    tools: Tools | None = None,
) -> str:
    """The conversation as the template writes it, with ``tools`` if it is to show any.

    It ends with the opening of the assistant's turn, if ``opened``; one whose last message is the
    assistant's ends within that message instead, so that the student goes on with it. A template
    that reads the clock finds ``day`` there (None: today).

    Raises:
        Exception: whatever the template raises; it belongs into a border.
    """
    options = template_options(tokenizer, settings, day)
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    goes_on = opened and messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=opened and not goes_on,
        continue_final_message=goes_on,
        **options,
    )


def template_notes(
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    section: str = "data",
    day: date | None = None,
) -> Iterator[str]:
    """What a user should know of the template in use, whatever the prompts.

    Raises:
        DataError: options or a system prompt that the template cannot take, by key; or every prompt
            would end with an end token.
    """
    options = settings.chat_template_kwargs
    if not uses_chat_template(tokenizer, settings, section):
        if options:
            yield f"{section}.chat_template_kwargs has no effect: no chat template is in use"
        return
    source = _source(tokenizer, settings, section)
    if unread := [name for name in options if not _reads(source, name)]:
        yield (
            f"{section}.chat_template_kwargs.{', '.join(unread)} has no effect: the chat template "
            "never reads it"
        )
    if _CLOCK in source and _CLOCK not in options and day is not None:
        yield (
            f"the chat template of {section} reads the clock: it is given the day {day} "
            "throughout (run.date)"
        )
    _refuse_keys(tokenizer, settings, section, day)
    yield from _ending(tokenizer, settings, section, day)


def _source(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, section: str = "data"
) -> str:
    """The text of the template in use."""
    options = settings.chat_template_kwargs
    with border(
        f"{section}.chat_template_kwargs = {options}",
        "name a template that the tokenizer has, or leave it out",
        DataError,
    ):
        return tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))


def _reads(source: str, option: str) -> bool:
    # The library's own option: which of a tokenizer's templates is used.
    return option == "chat_template" or bool(re.search(rf"\b{re.escape(option)}\b", source))


def _question(settings: DataSettings) -> list[Mapping[str, Any]]:
    """The least conversation, with the settings' system message."""
    system = settings.system_prompt
    asked = {"role": "user", "content": _QUESTION}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def _refuse_keys(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, section: str, day: date | None
) -> None:
    """Try options and system prompt, each by itself, so that an error is named by its key."""
    bare = DataSettings(chat_template=settings.chat_template)
    if (template := settings.chat_template_kwargs.get("chat_template")) is not None:
        bare.chat_template_kwargs = {"chat_template": template}
    if not _writes(tokenizer, bare, day):
        return  # it wants more than one message: the rows will tell
    for key, remedy in (
        ("chat_template_kwargs", "correct it, or leave it out"),
        ("system_prompt", "set it to null, and say in instruction what it should say"),
    ):
        if value := getattr(settings, key):
            tried = DataSettings(chat_template_kwargs=bare.chat_template_kwargs)
            setattr(tried, key, value)
            with border(f"the chat template with {section}.{key} = {value!r}", remedy, DataError):
                apply_chat_template(_question(tried), tokenizer, tried, day)


def _writes(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, day: date | None, *answer: str
) -> str | None:
    """The least conversation, with an answer if there is one; None: the template refuses it."""
    said = [{"role": "assistant", "content": text} for text in answer]
    try:
        with border("the chat template", "none", DataError):
            return apply_chat_template(
                [*_question(settings), *said], tokenizer, settings, day, opened=not answer
            )
    except DataError:
        return None


def _ending(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, section: str, day: date | None
) -> Iterator[str]:
    """What stands between a prompt and an answer to it, as the template itself writes both."""
    prompt = _writes(tokenizer, settings, day)
    answered = _writes(tokenizer, settings, day, _ANSWER)
    if prompt is None or answered is None or _ANSWER not in answered:
        return
    end = tokenizer.eos_token
    goes_on = answered.startswith(prompt)
    if end and prompt.rstrip().endswith(end) and not goes_on:
        raise DataError(
            f"the chat template of {section} ends every prompt with {end!r}, behind which nothing "
            f"is to be written: mend the tokenizer's chat template, or set {section}.chat_template "
            "to never"
        )
    opening = answered[len(prompt) : answered.index(_ANSWER)] if goes_on else ""
    if opening.strip():
        yield (
            f"the chat template of {section} ignores add_generation_prompt: prompts end with "
            f"{prompt[-20:]!r}, and the student has to write {opening!r} before it can answer"
        )
