"""What tools and environments say, as a student is shown it: words alone, and not too many."""

from __future__ import annotations

from opd_ray.environments.turns import TurnTemplate

# Characters; a run of spaces, say. Of results that are longer by far the end is not looked at.
_LONGEST_TOKEN = 64


def plain(text: str, template: TurnTemplate) -> str:
    """Text that the tokenizer takes, and takes for no special token."""
    text = text.encode(errors="replace").decode()
    for token in template.special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def shortened(text: str, template: TurnTemplate, most: int) -> tuple[str, bool]:
    """The text without special tokens, cut to ``most`` tokens; whether it was cut, as it then says.

    Args:
        text: of any length.
        template: whose tokenizer counts.
        most: tokens that stay.
    """
    tokenizer = template.tokenizer
    # Megabytes would take seconds to tokenise, and all other rollouts would wait.
    begin = text[: most * _LONGEST_TOKEN]
    readable = plain(begin, template)
    ids = tokenizer(readable, add_special_tokens=False)["input_ids"]
    whole = len(begin) == len(text)
    if len(ids) <= most and whole:
        return readable, False
    # The end may be a part of a character.
    kept = tokenizer.decode(ids[:most], clean_up_tokenization_spaces=False).rstrip("\ufffd")
    of = f"{len(ids)} tokens" if whole else f"the tokens of {len(text)} characters"
    return f"{kept}\n[cut: {min(most, len(ids))} of {of}]", True
