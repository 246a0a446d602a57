"""The section ``data`` of a configuration: where prompts come from and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from opd_ray.config.marks import PATH
from opd_ray.config.ranges import at_least, range_problems
from opd_ray.errors import ConfigError
from opd_ray.on_resume import FIXED, SAME_PROMPTS

PLACEHOLDER = "{prompt}"


class DataKind(StrEnum):
    """Kind of prompt source."""

    jsonl = "jsonl"
    parquet = "parquet"
    datasets = "datasets"
    python = "python"
    prepared = "prepared"
    chain_sum = "chain_sum"


class ChatTemplate(StrEnum):
    """When a prompt is wrapped in the tokenizer's chat template."""

    auto = "auto"
    always = "always"
    never = "never"


class OverLength(StrEnum):
    """What happens to prompts longer than ``max_prompt_tokens``."""

    refuse = "refuse"
    drop = "drop"


class ChainSumSplit(StrEnum):
    """Side of the chain_sum problems; the two never share one."""

    train = "train"
    heldout = "heldout"


@dataclass
class FieldSettings:
    """Which column holds what; a dotted name reaches into nested columns."""

    # Column of the prompt: text, or a list of chat messages.
    prompt: str = "prompt"
    # Column of the gold answer, null in rows without one; null for prompts without any.
    answer: str | None = "answer"
    # Column of the prompt's id; null numbers the rows by file and line.
    id: str | None = None
    # Column that says which data set a row is from; null uses the file's name, with its folder
    # where several files share one.
    source: str | None = None
    # Column of the text the teacher reads in place of the prompt; null shows it the student's.
    teacher_prompt: str | None = None


@dataclass
class ChainSumSettings:
    """The generated chain_sum problems."""

    # Terms of a sum.
    terms: int = field(default=3, metadata=at_least(2))
    # Digits of a term.
    digits: int = field(default=2, metadata=at_least(1))
    # Side of the problems: train or heldout.
    split: ChainSumSplit = ChainSumSplit.train
    # Different problems to make.
    count: int = field(default=4096, metadata=at_least(1))
    # Seed of the choice of problems.
    seed: int = 0


@dataclass
class DataSettings:
    """One prompt source and its preparation."""

    # Kind of source: jsonl, parquet, datasets, python, prepared or chain_sum.
    kind: DataKind = field(default=DataKind.chain_sum, metadata=SAME_PROMPTS)
    # File or glob pattern (jsonl, parquet), name or folder (datasets), "module:attr" (python), or
    # the name of a set that opd-ray prepare wrote, e.g. dapo_math_17k (prepared).
    path: str = field(default="", metadata=PATH | SAME_PROMPTS)
    # Configuration of a Hugging Face data set; null takes its default.
    subset: str | None = field(default=None, metadata=SAME_PROMPTS)
    # Split of a Hugging Face data set.
    split: str = field(default="train", metadata=SAME_PROMPTS)
    # Keyword arguments of a python source.
    arguments: dict[str, Any] = field(default_factory=dict, metadata=SAME_PROMPTS)
    # Which column is what.
    fields: FieldSettings = field(default_factory=FieldSettings, metadata=SAME_PROMPTS)
    # The problems of the chain_sum source.
    chain_sum: ChainSumSettings = field(default_factory=ChainSumSettings, metadata=SAME_PROMPTS)
    # System message put before every prompt; null for none.
    system_prompt: str | None = field(default=None, metadata=SAME_PROMPTS)
    # Text around the prompt; {prompt} stands for it.
    instruction: str = field(default=PLACEHOLDER, metadata=SAME_PROMPTS)
    # Wrap prompts in the tokenizer's chat template: auto (when it has one), always or never.
    chat_template: ChatTemplate = field(default=ChatTemplate.auto, metadata=SAME_PROMPTS)
    # Options of the chat template, for example enable_thinking.
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, metadata=SAME_PROMPTS)
    # Longest prompt, tokens, after the template.
    max_prompt_tokens: int = field(default=2048, metadata=at_least(1) | SAME_PROMPTS)
    # What to do with longer prompts: refuse to start, or drop them.
    over_length: OverLength = field(default=OverLength.refuse, metadata=SAME_PROMPTS)
    # Keep only the first of rows whose prompts are equal; where they have an environment, which may
    # make another problem of every column, of rows that are equal.
    deduplicate: bool = field(default=True, metadata=SAME_PROMPTS)
    # Use only the first so many rows; null uses all.
    limit: int | None = field(default=None, metadata=at_least(1) | SAME_PROMPTS)
    # Shuffle anew every epoch; false keeps the order of the source.
    shuffle: bool = field(default=True, metadata=FIXED)
    # Seed of the shuffling; null uses the run's seed.
    seed: int | None = field(default=None, metadata=FIXED)

    def columns(self) -> FieldSettings:
        """``fields``, and for a prepared set its own columns of id and source."""
        fields = self.fields
        if self.kind != DataKind.prepared:
            return fields
        return replace(fields, id=fields.id or "id", source=fields.source or "source")

    def validate(self, section: str = "data") -> None:
        """Refuse anything that no run can have.

        Raises:
            ConfigError: naming key, value and remedy.
        """
        if self.kind != DataKind.chain_sum and not self.path:
            wanted = {
                DataKind.jsonl: "a file or glob pattern",
                DataKind.parquet: "a file or glob pattern",
                DataKind.datasets: "a data set name or folder",
                DataKind.python: '"module:attr" of a function that returns rows',
                DataKind.prepared: "the name of a set that opd-ray prepare wrote",
            }[self.kind]
            raise ConfigError(f"{section}.path is empty: kind {self.kind.value} needs {wanted}")
        if self.kind == DataKind.python and self.path.count(":") != 1:
            raise ConfigError(f'{section}.path = {self.path!r}: write it as "module:attr"')
        for key in ("system_prompt", "instruction"):
            text = getattr(self, key) or ""
            if text != text.encode(errors="replace").decode():
                raise ConfigError(
                    f"{section}.{key} = {text!a} holds half a character (a surrogate without "
                    "its other half): write the whole character, or take the half out"
                )
        if PLACEHOLDER not in self.instruction:
            raise ConfigError(
                f"{section}.instruction = {self.instruction!r} does not contain {PLACEHOLDER}: "
                "put it where the prompt goes"
            )
        if not self.fields.prompt:
            raise ConfigError(f"{section}.fields.prompt is empty: name the prompt's column")
        problems = [
            *range_problems(section, self),
            *range_problems(f"{section}.chain_sum", self.chain_sum),
        ]
        if problems:
            raise ConfigError("\n".join(problems))
