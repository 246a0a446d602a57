"""What the docs say can be typed: every command is run or checked, every key named exists."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documented_commands import (
    CHECKED,
    KEPT_RIGHT,
    NEEDS,
    PAGES,
    ROOT,
    Documented,
    documented_commands,
    kept_right,
)

from opd_ray.cli import make_parser
from opd_ray.cli.eval import evaluation_config
from opd_ray.cli.reference import commands, to_markdown
from opd_ray.config.files import packaged_names
from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.output.checkpoint import MANIFEST
from opd_ray.preflight.config import check_evaluation, config_problems
from opd_ray.study.cells import study_cells

COMMANDS = [*documented_commands()]
# In place of folders of the reader's: models whose shapes come with the package.
HUB = {
    "/models/student": "Qwen/Qwen3-1.7B",
    "/models/teacher": "Qwen/Qwen3-8B",
    "=STUDENT": "=Qwen/Qwen3-1.7B",
    "=TEACHER": "=Qwen/Qwen3-8B",
}
_KEY = re.compile(r"`(?:\w+=)?([a-z]+)\.([a-z_0-9]+)(?:=[^`]*|: [^`]*)?`")
SECTIONS = {field.name for field in fields(Config)} - {"report"}
# What looks like a key and is none.
NO_KEYS = {"environments.NAME", "teachers.NAME"}


@pytest.fixture(scope="module")
def my_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tutorial's own pair, of models that are here."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    (found,) = re.findall(r"```yaml\n(# my_run\.yaml\n.*?)```", text, re.DOTALL)
    file = tmp_path_factory.mktemp("my_run") / "my_run.yaml"
    file.write_text(_with_models(found))
    return file


def test_every_command_of_the_docs_is_kept_right_by_something() -> None:
    """If not: a line in KEPT_RIGHT, or beside the command what it needs ("needs a GPU")."""
    unknown = [str(one) for one in COMMANDS if kept_right(one) is None]
    assert unknown == [], "nothing runs or checks them"
    unsaid = [str(one) for one in COMMANDS if kept_right(one) == NEEDS and not one.needs]
    assert unsaid == [], "the docs do not say what they need"


@pytest.mark.parametrize("text", sorted({how for _, how in KEPT_RIGHT if "::" in how}))
def test_a_test_that_runs_a_command_is_there(text: str) -> None:
    file, _, name = text.partition("::")
    assert re.search(rf"^def {name}", (ROOT / "tests" / file).read_text(), re.MULTILINE)


# Each once, whatever the number of pages.
OWN = {one.text: one for one in COMMANDS if re.match(r"(\S+=\S+ )?opd-ray ", one.text)}


@pytest.mark.parametrize("command", OWN.values(), ids=str)
def test_a_command_parses_and_its_config_can_be_run(
    command: Documented,
    my_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    words = shlex.split(command.text)
    words = words[words.index("opd-ray") + 1 :]
    try:
        args, more = make_parser().parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err}")
    overrides = [*getattr(args, "overrides", []), *more]
    assert not [word for word in overrides if word.startswith("-")]
    if kept_right(command) != CHECKED:
        return
    # Rules, environments and configs of examples are named as from their folders.
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("opd_ray.models.pairs.smollm2.pair_folder", lambda: Path("of-the-hub"))
    for example in (ROOT / "examples").iterdir():
        monkeypatch.syspath_prepend(example)
    if args.config is not None and args.config not in packaged_names():
        assert args.config in ("my_run.yaml", "CONFIG") or (ROOT / args.config).is_file()
        args.config = args.config if (ROOT / args.config).is_file() else str(my_run)
    args.overrides = [_here(_with_models(word), tmp_path) for word in overrides]
    if getattr(args, "model", None):
        args.model = HUB["/models/student"]
    if args.run.__module__ == "opd_ray.cli.eval":
        check_evaluation(evaluation_config(args))
        return
    config = load_config(args.config, args.overrides)
    assert config_problems(config) == []
    if words[0] == "study":
        study_cells(config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_sentence_have_the_options_that_they_name(page: Path) -> None:
    """`opd-ray report RUN_A RUN_B` and its like, whose other words stand for something."""
    helps = {name: parser.format_help() for name, parser in commands()}
    wrong = []
    for text in re.findall(r"`opd-ray ([a-z][^`\n]*)`", page.read_text()):
        words = text.split()
        known = helps.get(" ".join(words[:2])) or helps.get(words[0], "")
        options = [word for word in words if word.startswith("--")]
        if not known or not all(re.search(rf"{option}\b", known) for option in options):
            wrong.append(text)
    assert wrong == []


def _with_models(text: str) -> str:
    for here, on_hub in HUB.items():
        text = re.sub(rf"{here}\b", on_hub, text)
    return text


def _here(override: str, folder: Path) -> str:
    """The override with a folder that is there, in place of one that a run would have left."""
    key, _, value = override.partition("=")
    if key == "run.resume" and value.startswith("outputs/"):
        (folder / MANIFEST).write_text("{}")
        return f"{key}={folder}"
    return f"{key}={folder}" if key == "teacher.cache_dir" else override


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
