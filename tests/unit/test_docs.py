"""What the docs say can be typed: every command parses, every key that is named exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.cli import make_parser
from opd_ray.cli.reference import to_markdown
from opd_ray.config.files import packaged_names
from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = [
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "commands.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "examples").rglob("*.md")),
]
_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_KEY = re.compile(r"`(?:\w+=)?([a-z]+)\.([a-z_0-9]+)(?:=[^`]*|: [^`]*)?`")
SECTIONS = {field.name for field in fields(Config)} - {"report"}
# What looks like a key and is none.
NO_KEYS = {"environments.NAME", "teachers.NAME"}


def commands(text: str) -> Iterator[str]:
    """Every ``opd-ray ...`` line of the bash blocks, lines that go on joined."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("opd-ray "):
                yield line.strip()


def all_commands() -> list[Any]:
    return [
        pytest.param(command, id=f"{page.relative_to(ROOT)}: {command[:60]}")
        for page in PAGES
        for command in dict.fromkeys(commands(page.read_text()))
    ]


@pytest.mark.parametrize("command", all_commands())
def test_a_command_parses_and_its_keys_exist(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command, comments=True)[1:]
    if "--help" in words or "$" in command or any(word.isupper() for word in words[:1]):
        pytest.skip("stands for any command, or for a loop of the shell")
    words = words[: next((i for i, w in enumerate(words) if w in ("|", ">", "&&", "&")), None)]
    try:
        args, more = make_parser().parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err}")
    overrides = [*getattr(args, "overrides", []), *more]
    assert not [word for word in overrides if word.startswith("-")]
    config = getattr(args, "config", None)
    if config is None:
        return
    monkeypatch.setattr(
        "opd_ray.models.pairs.smollm2.pair_folder", lambda: Path("/fetched/smollm2")
    )
    known = config if config in packaged_names() else "demo"
    assert config in packaged_names() or config.endswith(".yaml") or config.isupper()
    named = [word for word in overrides if word not in ("...", "[KEY=VALUE]")]
    if known == "tip_math":
        named += ["student.path=s", "teacher.path=t"]
    load_config(known, [word for word in named if "=" in word])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    known = {key.replace("[]", "") for key in all_keys(Config)}
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    wrong = [
        f"{section}.{name}"
        for section, name in _KEY.findall(page.read_text())
        if section in SECTIONS
        and f"{section}.{name}" not in known | sections | NO_KEYS
        and name not in ("py", "md", "json", "yaml", "jsonl", "txt", "html")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "launch").rglob("*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    """Those of the docs themselves are checked where the site is built."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_the_page_of_commands_is_that_of_the_code() -> None:
    """If not: python -m opd_ray.cli.reference > docs/commands.md"""
    assert (ROOT / "docs" / "commands.md").read_text() == to_markdown()


def test_links_that_leave_the_docs_are_checked(caplog: pytest.LogCaptureFixture) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_links", ROOT / "launch" / "docs_links.py")
    assert spec is not None
    assert spec.loader is not None
    links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(links)

    def page(source: str) -> Any:
        return SimpleNamespace(file=SimpleNamespace(src_uri=source))

    text = "[a `b`](../setup.py#x) [c](other.md) [d](../gone.py)"
    assert links.on_page_markdown(text, page("one.md")) == (
        '<a href="../setup.py#x">a <code>b</code></a> [c](other.md) <a href="../gone.py">d</a>'
    )
    assert [record.getMessage() for record in caplog.records] == [
        "one.md: ../gone.py: no such file in the repository"
    ]
    # From a folder of the docs, ../ is still inside of them.
    assert links.on_page_markdown("[e](../study.md)", page("results/two.md")) == "[e](../study.md)"
    assert 'href="../../setup.py"' in links.on_page_markdown(
        "[e](../../setup.py)", page("results/two.md")
    )
