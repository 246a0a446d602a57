"""Chats of every shape through chat templates of every kind, and what is said of templates."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rendering import render
from transformers import PreTrainedTokenizerFast

from opd_ray.config.data import ChatTemplate, DataKind, DataSettings, FieldSettings
from opd_ray.config.schema import Config, EvalSettings, EvalTask, RolloutSettings, RunSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.prompts import PromptFeed, dated, held_out_tasks
from opd_ray.data.rows import DataError, PromptRow
from opd_ray.data.tokenize import tokenize
from opd_ray.models.pairs.demo import character_tokenizer

# In characters that the demo's tokenizer has: "?" opens a user's turn, ":" the assistant's.
TURNS = "{{ {'system': '*', 'user': '?', 'assistant': ':', 'tool': '-'}[m.role] }}"
PLAIN = (
    "{% for m in messages %}" + TURNS + "{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)
# Asks, as templates of models with tools do, whether a message has a key.
KEYS = (
    "{% for m in messages %}" + TURNS + "{% if 'name' in m %}{{ m.name }}{% endif %}"
    "{% if 'tool_calls' in m %}{% for c in m.tool_calls %}={% for k in c.function.arguments %}"
    "{{ c.function.arguments[k] }}{% endfor %}{% endfor %}{% endif %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)
CALL = {"function": {"name": "f", "arguments": {"a": "7"}}}
OTHER_CALL = {"function": {"name": "g", "arguments": {"b": "8"}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "1+2="}],
    [
        {"role": "user", "content": "3", "name": "9"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
    ],
    [
        {"role": "user", "content": "3"},
        {"role": "assistant", "tool_calls": [OTHER_CALL, CALL]},
        {"role": "tool", "content": "4"},
    ],
]


def chatty(template: str) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chat(*messages: tuple[str, str], **more: Any) -> PromptRow:
    found = tuple({"role": role, "content": content} for role, content in messages)
    return PromptRow("p", None, found, "3", "s", **more)


def jsonl(path: Path, prompts: list[Any]) -> DataSettings:
    lines = [json.dumps({"prompt": prompt, "answer": "3"}) + "\n" for prompt in prompts]
    path.write_text("".join(lines), encoding="utf-8")
    return DataSettings(kind=DataKind.jsonl, path=str(path), deduplicate=False)


def notes(
    tokenizer: PreTrainedTokenizerFast, settings: DataSettings, day: date | None = None
) -> list[str]:
    return list(load_prompts(settings, tokenizer=tokenizer, day=day).report.notes)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "pandas"])
def test_a_chat_is_the_same_prompt_from_every_kind_of_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table gives every message every key, and every call every argument, with null."""
    settings = jsonl(tmp_path / "a.jsonl", CHATS)
    rows = [{"prompt": prompt, "answer": "3"} for prompt in CHATS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    if kind == "parquet":
        settings = DataSettings(kind=DataKind.parquet, path=str(tmp_path / "a.parquet"))
    if kind == "pandas":
        settings = DataSettings(kind=DataKind.python, path=f"{__name__}:frame_of")
        settings.arguments = {"path": str(tmp_path / "a.parquet")}
    tokenizer = chatty(KEYS)
    loaded = load_prompts(settings, tokenizer=tokenizer)
    found = [render(loaded.row(n), tokenizer, settings) for n in range(3)]
    assert found == ["?1+2=\n:", "?93\n:=7\n-4\n:", "?3\n:=8=7\n-4\n:"]


def frame_of(path: str) -> list[dict[str, Any]]:
    """A python source: the rows as pandas has them, lists as arrays."""
    import pandas

    return pandas.read_parquet(path).to_dict("records")


def test_a_content_in_parts_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "1+2", "image": None}, {"type": "text", "text": "="}]
    settings = jsonl(tmp_path / "a.jsonl", [[{"role": "user", "content": parts}]])
    row = load_prompts(settings, tokenizer=chatty(PLAIN)).row(0)
    assert render(row, chatty(PLAIN), settings) == "?1+2\n=\n:"


def dated_rows() -> list[dict[str, Any]]:
    """A python source whose messages carry what JSON cannot."""
    message = {"role": "user", "content": "1=", "at": date(2024, 3, 15)}
    return [{"prompt": [message], "answer": "1"}, {"prompt": [{**message}], "answer": "1"}]


def test_messages_may_carry_anything() -> None:
    settings = DataSettings(kind=DataKind.python, path=f"{__name__}:dated_rows")
    assert load_prompts(settings, tokenizer=chatty(PLAIN)).report.duplicates == 1


def test_a_conversation_that_ends_with_the_assistant_is_gone_on_with() -> None:
    row = chat(("user", "1+2="), ("assistant", "3-"), teacher_text="9=")
    tokenizer, settings = chatty(PLAIN), DataSettings(instruction="{prompt}.")
    assert render(row, tokenizer, settings) == "?1+2=.\n:3-"
    # The response goes on from there for the teacher too.
    assert render(row, tokenizer, settings, teacher=True) == "?9=.\n:3-"
    begins = chat(("assistant", "1"), ("user", "2"))
    assert render(begins, tokenizer, DataSettings()) == ":1\n?2\n:"


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + TURNS + "{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
)


def test_rows_that_a_template_refuses_are_named(tmp_path: Path) -> None:
    user = {"role": "user", "content": "1+2="}
    settings = jsonl(tmp_path / "a.jsonl", [[user], [user, user], "1=", [user, user, user]])
    with pytest.raises(DataError) as error:
        load_prompts(settings, tokenizer=chatty(ALTERNATES), section="eval.tasks[0].data")
    said = str(error.value).splitlines()
    assert said[0].startswith("eval.tasks[0].data: these prompts cannot be written")
    assert [line.split(": ")[0].strip() for line in said[1:]] == [
        f"{tmp_path}/a.jsonl, line 2",
        f"{tmp_path}/a.jsonl, line 4",
    ]
    assert "the chat template: TemplateError: roles must alternate" in said[1]


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ nothing.here }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ 1 + messages[0].content }}", "TypeError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
    ],
)
def test_whatever_a_template_raises_names_the_row(tmp_path: Path, template: str, what: str) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1=", "2="])
    with pytest.raises(DataError, match=rf"line 1: the chat template: {what}"):
        load_prompts(settings, tokenizer=chatty(template))


@pytest.mark.parametrize(
    ("template", "keys", "message"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + PLAIN,
            {"system_prompt": "*"},
            r"data\.system_prompt = '\*': TemplateError: no system; set it to null",
        ),
        (
            PLAIN + "{{ style + 1 }}",
            {"chat_template_kwargs": {"style": "x"}},
            None,  # without the option the template fails too: its rows are named
        ),
        (
            "{% if style is defined %}{{ style + 1 }}{% endif %}" + PLAIN,
            {"chat_template_kwargs": {"style": "x"}},
            r"data\.chat_template_kwargs = \{'style': 'x'\}: TypeError.*; correct it",
        ),
        (
            PLAIN,
            {"chat_template_kwargs": {"tokenize": True}},
            r"data\.chat_template_kwargs = \{'tokenize': True\}: TypeError.*multiple values",
        ),
    ],
)
def test_an_error_that_a_key_causes_names_the_key(
    tmp_path: Path, template: str, keys: dict[str, Any], message: str | None
) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1=", "2="])
    for key, value in keys.items():
        setattr(settings, key, value)
    with pytest.raises(DataError, match=message or r"a\.jsonl, line 1: the chat template: Type"):
        load_prompts(settings, tokenizer=chatty(template))


def test_an_error_of_the_tokenizer_names_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = character_tokenizer()
    whole = type(tokenizer).__call__

    def picky(self: Any, texts: Any, **options: Any) -> Any:
        if any("7" in text for text in texts):
            raise TypeError("TextEncodeInput must be Union")
        return whole(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", picky)
    settings = jsonl(tmp_path / "a.jsonl", ["1=", "7=", "3="])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the tokenizer: TypeError: TextEnc"):
        load_prompts(settings, tokenizer=tokenizer)


CLOCK = "{{ strftime_now('%d-%m-%Y') }}" + PLAIN


def test_a_template_that_reads_the_clock_is_told_the_day() -> None:
    row = chat(("user", "1="), teacher_text="2=")
    tokenizer, day = chatty(CLOCK), date(2024, 3, 15)
    assert render(row, tokenizer, DataSettings(), day=day) == "15-03-2024?1=\n:"
    ids = tokenize([row], tokenizer, DataSettings(), teacher=True, day=day)
    assert tokenizer.decode(ids[0]) == "15-03-2024?2=\n:"
    today = date.today().strftime("%d-%m-%Y")
    assert render(row, tokenizer, DataSettings()) == f"{today}?1=\n:"


def test_a_run_and_its_problems_have_one_day(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", ["1=", "2="])
    data.shuffle = False
    config = Config(
        run=RunSettings(),
        data=data,
        rollout=RolloutSettings(prompts_per_step=2),
        eval=EvalSettings(tasks=[EvalTask(name="sums", data=data)]),
    )
    tokenizer = chatty(CLOCK)
    today = date.today().isoformat()
    assert dated(config, tokenizer, kept=None).run.date == today
    assert dated(config, chatty(PLAIN), kept="2024-03-15").run.date is None
    data.chat_template = ChatTemplate.never
    assert dated(config, tokenizer, kept="2024-03-15").run.date is None
    data.chat_template = ChatTemplate.auto
    kept = dated(config, tokenizer, kept="2024-03-15")
    assert kept.run.date == "2024-03-15"
    assert dated(kept, tokenizer, kept="2024-03-16").run.date == "2024-03-15"

    feed = PromptFeed.load(kept, tokenizer)
    (task,) = held_out_tasks(kept, tokenizer)
    for prompts in (feed.batch(0, 2), task.prompts):
        written = [tokenizer.decode(prompt.student_ids) for prompt in prompts]
        assert written == ["15-03-2024?1=\n:", "15-03-2024?2=\n:"]
    assert list(feed.notes) == [
        "the chat template of data reads the clock: it is given the day 2024-03-15 throughout "
        "(run.date)"
    ]
    assert "of eval.tasks[0].data reads the clock" in task.notes[0]


def test_options_that_nothing_reads_are_said(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1="])
    settings.chat_template_kwargs = {"enable_thinking": False}
    (note,) = notes(chatty(PLAIN), settings)
    assert note == (
        "data.chat_template_kwargs.enable_thinking has no effect: the chat template never reads it"
    )
    thinks = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
    assert notes(chatty(thinks), settings) == []
    (note,) = notes(character_tokenizer(), settings)
    assert note == "data.chat_template_kwargs has no effect: no chat template is in use"


def test_a_template_that_opens_no_turn_is_said(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1="])
    ignores = "{% for m in messages %}" + TURNS + "{{ m.content }}\n{% endfor %}"
    (note,) = notes(chatty(ignores), settings)
    assert "ignores add_generation_prompt" in note
    assert "the student has to write ':' before it can answer" in note
    # As those that close the user's turn and let the answer follow at once.
    bracketed = (
        "{% for m in messages %}{% if m.role == 'user' %}?{{ m.content }}={% else %}"
        " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    assert notes(chatty(bracketed), settings) == []
    # One whose turns end with the end token, where an answer follows at once.
    ended = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (note,) = notes(chatty(ended), settings)
    assert "end with the end token" in note


def test_a_template_that_ends_every_prompt_is_refused(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1="])
    with pytest.raises(DataError, match=r"template of data ends every prompt with '<eos>'"):
        notes(chatty(PLAIN + "{{ eos_token }}"), settings)


def test_text_that_a_template_leaves_out_is_said(tmp_path: Path) -> None:
    user = {"role": "user", "content": "1+2="}
    system = {"role": "system", "content": "***"}
    settings = jsonl(tmp_path / "a.jsonl", [[user], [system, user], [system, user]])
    drops = (
        "{% for m in messages if m.role != 'system' %}" + TURNS + "{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    (note,) = notes(chatty(drops), settings)
    assert f"2 prompts (first {tmp_path}/a.jsonl, line 2): the chat template leaves out" in note
    assert note.endswith("the text of a system message")
    assert notes(chatty(PLAIN), settings) == []
    settings = jsonl(tmp_path / "a.jsonl", [[user]])
    settings.system_prompt = "***"
    assert "leaves out" in notes(chatty(drops), settings)[0]


def test_prompts_that_have_been_through_a_template_are_said(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1=", "<bos>?1=\n:"])
    (note,) = notes(chatty(PLAIN), settings)
    assert f"1 prompt ({tmp_path}/a.jsonl, line 2) begin with a special token" in note


def post_processed(before: str, behind: str) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer()
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {behind}".strip(), special_tokens=special
    )
    return tokenizer


def test_no_end_token_stands_behind_a_text(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1+2=", "<bos>3="])
    tokenizer = post_processed("<bos>", "<eos>")
    loaded = load_prompts(settings, tokenizer=tokenizer)
    ids = tokenize([loaded.row(0), loaded.row(1)], tokenizer, settings)
    texts = [tokenizer.convert_ids_to_tokens(found) for found in ids]
    # Nor do two begin tokens stand before one.
    assert texts == [["<bos>", "1", "+", "2", "="], ["<bos>", "3", "="]]
    first, second = loaded.report.notes
    assert first.startswith("the tokenizer adds '<eos>' behind every text")
    assert f"1 prompt ({tmp_path}/a.jsonl, line 2) begin with a begin token" in second
    assert loaded.report.longest_prompt == 5


def test_an_end_token_of_the_users_own_stays_and_is_said(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", ["1+2=<eos>", "3="])
    for tokenizer in (post_processed("<bos>", "<eos>"), character_tokenizer()):
        loaded = load_prompts(settings, tokenizer=tokenizer)
        (ids,) = tokenize([loaded.row(0)], tokenizer, settings)
        assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["=", "<eos>"]
        assert (
            f"1 prompt ({tmp_path}/a.jsonl, line 1) end with the end token"
            in (loaded.report.notes[-1])
        )


def test_a_begin_token_behind_the_text_stays(tmp_path: Path) -> None:
    """Some tokenizers have the response begin with it."""
    settings = jsonl(tmp_path / "a.jsonl", ["1="])
    tokenizer = post_processed("", "<bos>")
    loaded = load_prompts(settings, tokenizer=tokenizer)
    (ids,) = tokenize([loaded.row(0)], tokenizer, settings)
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", "=", "<bos>"]
    assert list(loaded.report.notes) == []


def test_a_healthy_template_is_not_talked_about(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", [*CHATS, "1="])
    settings.fields = FieldSettings()
    assert notes(chatty(KEYS), settings, date(2024, 3, 15)) == []


def test_chats_that_a_column_spells_as_text_are_noted(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "1+2="}]
    spelled = [json.dumps(said), str(said), "1+2="]
    (note,) = notes(character_tokenizer(), jsonl(tmp_path / "a.jsonl", spelled))
    assert note.startswith("data: 2 prompts (first ")
    assert "a.jsonl, line 1) spell a list of chat messages as text" in note
    assert notes(chatty(PLAIN), jsonl(tmp_path / "b.jsonl", [said, "[1, 2] + [3]"])) == []
