"""No file of the repository holds a key.

Forms of keys that are known, and values of what is called one. A scanner such as detect-secrets
would be a package more in the lock and a list of accepted hashes to keep; what it finds beyond
this, text of high entropy, is here fingerprints and excerpts of data alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("actors", "benchmarks", "configs", "docs", "examples", "launch", "opd_ray", "tests")
TEXTS = {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".txt", ".in", ".json", ".jsonl", ".jinja"}
KEYS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[0-9A-Za-z_-]{35}"  # Google
    r"|\bgh[pousr]_[0-9A-Za-z]{36}|\bgithub_pat_[0-9A-Za-z_]{22}"
    r"|\bglpat-[0-9A-Za-z_-]{20}"
    r"|\bhf_[A-Za-z]{30}"
    r"|\bsk-[0-9A-Za-z_-]{20}"  # OpenAI, Anthropic
    r"|\bxox[abprs]-[0-9A-Za-z-]{10}"  # Slack
    r"|\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\."  # a signed token
    # Whatever is called a key or token and is long and mixed enough to be one.
    r"|(?i:(?:api_?key|auth_?token|secret|password)[\"']?\s*[=:]\s*[\"']?)"
    r"(?=[0-9A-Za-z+/_-]{0,39}[0-9])(?=[0-9A-Za-z+/_-]{0,39}[A-Za-z])[0-9A-Za-z+/_-]{24,}"
)


def files() -> Iterator[Path]:
    for path in [*ROOT.iterdir(), *(p for f in FOLDERS for p in (ROOT / f).rglob("*"))]:
        if path.is_file() and path.suffix in TEXTS:
            yield path


def test_no_file_holds_a_key() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0][:12]}..."
        for path in files()
        if (match := KEYS.search(path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert found == []


# In two parts each: the test above reads this file too.
@pytest.mark.parametrize(
    "parts",
    [
        ("-----BEGIN RSA", " PRIVATE KEY-----"),
        ("AKIA", "ABCDEFGHIJ234567"),
        ("AIza", "SyA1234567890abcdefghijklmnopqrstuv"),
        ("ghp_", "a1" * 18),
        ("hf_", "abcdefghij" * 3),
        ("sk-", "ant-api03-abcdefghijk"),
        ("xoxb-", "1234567890"),
        ("eyJ", "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.c2ln"),
        ('WANDB_API_KEY="', "0123456789abcdef0123456789abcdef01234567"),
        ("password: ", "abcdefgh1234567890abcdefgh"),
    ],
)
def test_keys_are_found(parts: tuple[str, str]) -> None:
    assert KEYS.search("".join(parts))


@pytest.mark.parametrize(
    "text",
    ["api_key_env: OPENAI_API_KEY", 'KEY = "sk-very-secret"', "auth_token: ~/.ray/auth_token"],
)
def test_names_of_keys_are_none(text: str) -> None:
    assert not KEYS.search(text)
