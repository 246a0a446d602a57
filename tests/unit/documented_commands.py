"""Every command that the docs name, and what keeps each of them right."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# commands.md is made from the code.
PAGES = [
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "commands.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "launch").rglob("*.md")),
    *sorted((ROOT / "opd_ray" / "models").rglob("*.md")),
]
_BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
# Parts of the shell, which name no command of their own.
_SHELL = ("export ", "source ", "cd ", "for ")
# What a page says of a command that not every machine can run.
_NEEDS = re.compile(r"needs? (?:a |an |the )?(?:GPUs?|cluster|hub|package index|server|network)\b")


@dataclass(frozen=True)
class Documented:
    """A command of a page."""

    page: Path
    text: str  # lines that go on joined, without the comment behind it
    needs: bool  # whether its block, or the page before its first block, says what it needs

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def documented_commands() -> Iterator[Documented]:
    """Those of all bash blocks, each once a page."""
    for page in PAGES:
        text = page.read_text()
        blocks = [*_BLOCK.finditer(text)]
        of_page = bool(blocks) and _NEEDS.search(text[: blocks[0].start()]) is not None
        found: dict[str, bool] = {}
        for block in blocks:
            needs = of_page or _NEEDS.search(block[1]) is not None
            for command in _commands(block[1]):
                found[command] = found.get(command, False) or needs
        for command, needs in found.items():
            yield Documented(page, command, needs)


def _commands(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        # A comment begins behind white space; shlex knows quotes, but would drop those it reads.
        lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, ""
        words = []
        for word in lexer:
            if word.startswith("#"):
                break
            words.append(word)
        command = " ".join(words)
        if command and not command.startswith(_SHELL):
            yield command


CHECKED = "checked"  # against parser, configuration and preflight, by test_docs.py
NEEDS = "needs"  # what not every machine has, and the docs say so
BY_HAND = "by hand"  # takes long: when figures in the docs are made anew, and at a release
# (command, what keeps it right): one of these, or the test that runs it. The first that fits.
KEPT_RIGHT = [
    # Launch scripts.
    (r"(bash )?launch/single_node\.sh .*tip_", NEEDS),
    (r"bash launch/demo\.sh", "runs/test_launch_scripts.py::test_demo_passes_overrides"),
    (r"bash launch/test\.sh", "runs/test_launch_scripts.py::test_everything_is_checked"),
    (r"launch/single_node\.sh", "runs/test_launch_scripts.py::test_single_node_passes_retries"),
    (r"bash launch/gpu_check\.sh --device cpu", "runs/test_gpu_check_run.py::test_"),
    (r"bash launch/gpu_check\.sh", NEEDS),
    (r"(bash )?launch/submit\.sh", NEEDS),
    (r"sbatch|kubectl|(RAY_AUTH_MODE=token )?ray start .*(6379)", NEEDS),
    (r"ray (start|stop)", "runs/test_custom_teacher.py::test_class_and_actor"),
    # Servers and files elsewhere.
    (r"git clone|hf download|vllm serve|opd-ray fetch-smollm2", NEEDS),
    (r"opd-ray prepare deepplanning", "runs/test_deepplanning_run.py::test_from_the_clone"),
    (r"opd-ray prepare", "unit/data/test_prepare.py::test_the_command_and_the_kind"),
    (r"opd-ray deepplanning score", "runs/test_deepplanning_run.py::test_from_the_clone"),
    # Examples.
    (r"python examples/own_trainer", "unit/test_own_trainer_example.py::test_a_student_learns"),
    (r"pip install trl", NEEDS),
    (r"python examples/trl_trainer", "unit/test_trl_trainer_example.py::test_a_student_learns"),
    (r"python examples/custom_teacher", "runs/test_custom_teacher.py::test_class_and_actor"),
    (r"opd-ray check-teacher .*custom_teacher", "runs/test_custom_teacher.py::test_the_examples"),
    (r"opd-ray train .*custom_teacher", "runs/test_custom_teacher.py::test_class_and_actor"),
    (
        r"opd-ray train .*custom_environment",
        "unit/environments/test_custom_environment_example.py::test_its_config_names_it",
    ),
    (r".*opd-ray check-rule surprise", "unit/preflight/contract/test_check_rule.py::test_what_the"),
    (
        r"opd-ray check-environment --path stock:Stock",
        "unit/environments/test_custom_environment_example.py::test_the_check_of_its_readme",
    ),
    # Commands that read a folder of their own.
    (r"opd-ray status", "unit/output/test_status.py::test_the_command_tells"),
    (r"opd-ray report", "unit/report/test_page.py::test_the_command_writes"),
    (r"opd-ray export", "runs/test_lora_run.py::test_an_adapter_sent_alone"),
    (r"opd-ray make-(tools-)?pair", "unit/cli/test_commands.py::test_make_pair_passes"),
    (
        r"opd-ray check-environment --path",
        "unit/preflight/contract/test_check_environment.py::test_the_command",
    ),
    (
        r"opd-ray check-environment --config",
        "unit/preflight/contract/test_check_environment.py::test_rows_of_a_configs_data",
    ),
    # Tools of the repository.
    (r"(PYTHONPATH=\. )?python (tests/soak|benchmarks)/", BY_HAND),
    # A release.
    (r"(OPD_RAY_URL=\S+ )?python -m (build|twine)", "runs/test_launch_wheel.py::test_the_source"),
    (r"python3\.11 -m venv|empty/bin/pip|tar xf|\"\$OLDPWD", BY_HAND),
    # All that has a configuration.
    (r"(PYTHONPATH=\S+ )?opd-ray (train|demo|study|doctor|eval|check-teacher|serve-)", CHECKED),
]


def kept_right(command: Documented) -> str | None:
    """What keeps it right; None: nothing does."""
    return next((how for text, how in KEPT_RIGHT if re.match(text, command.text)), None)
