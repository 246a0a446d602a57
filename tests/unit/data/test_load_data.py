"""Prompt sources end to end: every kind, field mapping, filters, and bad input."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from opd_ray.config.data import (
    ChainSumSettings,
    ChainSumSplit,
    DataKind,
    DataSettings,
    FieldSettings,
    OverLength,
)
from opd_ray.data.load import load_prompts
from opd_ray.data.prompt_set import SourceReport
from opd_ray.data.rows import DataError
from opd_ray.errors import ConfigError
from opd_ray.models.pairs.demo import character_tokenizer

ROWS = [{"prompt": f"{n}+1=", "answer": n + 1, "level": n} for n in range(5)]


def rows_of_mine(count: int, word: str = "one") -> Iterator[dict[str, Any]]:
    """A python source."""
    return ({"prompt": f"{word} {n}", "answer": str(n)} for n in range(count))


def jsonl(path: Path, rows: list[Any]) -> DataSettings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(kind=DataKind.jsonl, path=str(path))


def prompts(settings: DataSettings, **options: Any) -> list[str | None]:
    loaded = load_prompts(settings, **options)
    return [loaded.row(n).text for n in range(len(loaded))]


def test_jsonl_row_by_row(tmp_path: Path) -> None:
    loaded = load_prompts(jsonl(tmp_path / "sums.jsonl", ROWS))
    assert len(loaded) == 5
    row = loaded.row(3)
    assert (row.text, row.messages, row.answer) == ("3+1=", None, "4")
    assert (row.id, row.source) == ("sums.jsonl:4", "sums.jsonl")
    assert row.teacher_text is None


def test_jsonl_skips_blank_lines_and_a_byte_order_mark_but_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "x", "answer": "1"}\n\n{"prompt":"y","answer":"2"}')
    loaded = load_prompts(DataSettings(kind=DataKind.jsonl, path=str(path)))
    assert [loaded.row(n).id for n in range(2)] == ["a.jsonl:1", "a.jsonl:3"]


def test_a_pattern_reads_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}", "answer": 0} for n in (1, 2)])
    settings = DataSettings(kind=DataKind.jsonl, path=str(tmp_path / "*.jsonl"))
    assert prompts(settings) == ["a1", "a2", "b1", "b2"]


def test_field_mapping_reaches_into_nested_columns(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    raw = {"key": "q1", "prompt": chat, "reward": {"gold": "2"}, "set": "s", "hint": "1+1=2"}
    settings = jsonl(tmp_path / "chat.jsonl", [raw])
    settings.fields = FieldSettings("prompt", "reward.gold", "key", "set", "hint")
    row = load_prompts(settings).row(0)
    assert (row.id, row.source, row.answer, row.teacher_text) == ("q1", "s", "2", "1+1=2")
    assert row.text is None
    assert row.messages == tuple(chat)


def test_prompts_without_answers(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", [{"prompt": "x"}])
    settings.fields.answer = None
    assert load_prompts(settings).row(0).answer is None


def test_parquet_gives_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "sums.parquet")
    table = load_prompts(DataSettings(kind=DataKind.parquet, path=str(tmp_path / "sums.parquet")))
    lines = load_prompts(jsonl(tmp_path / "sums.jsonl", ROWS))
    for n in range(5):
        assert table.row(n).text == lines.row(n).text
        assert table.row(n).answer == lines.row(n).answer


def test_parquet_rows_are_named_by_file_and_row(tmp_path: Path) -> None:
    empty = pyarrow.Table.from_pylist(ROWS).slice(0, 0)
    for name, table in (
        ("a", pyarrow.Table.from_pylist(ROWS)),
        ("b", empty),
        ("c", pyarrow.Table.from_pylist([{"prompt": "7+1=", "answer": 8, "level": 7}] * 2)),
    ):
        # Pieces of two rows, so that rows lie in several of them.
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    settings = DataSettings(kind=DataKind.parquet, path=str(tmp_path / "*.parquet"))
    settings.deduplicate = False
    loaded = load_prompts(settings)
    ids = [f"a.parquet:{n}" for n in range(1, 6)] + ["c.parquet:1", "c.parquet:2"]
    assert [loaded.row(n).id for n in range(7)] == ids
    assert loaded.row(6).text == "7+1="

    bad = [{"prompt": "x", "answer": 1, "level": 0}, {"prompt": " ", "answer": 1, "level": 0}]
    parquet.write_table(pyarrow.Table.from_pylist(bad), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"1 of 9 rows.*\n.*d\.parquet, line 2: .*is empty"):
        load_prompts(settings)
    parquet.write_table(pyarrow.Table.from_pylist([{"question": "x"}]), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"e\.parquet, line 1: column 'prompt' .*has 'question'"):
        load_prompts(settings)


def test_parquet_and_sequences_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [{"prompt": f"{n} " + "x" * 1000, "answer": n} for n in range(20_000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    del rows
    before = pyarrow.total_allocated_bytes()
    loaded = load_prompts(DataSettings(kind=DataKind.parquet, path=str(tmp_path / "a.parquet")))
    assert pyarrow.total_allocated_bytes() - before < 2_000_000  # of 20 MB
    assert loaded.row(12_345).answer == "12345"
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]

    python = DataSettings(kind=DataKind.python, path=f"{__name__}:lazy_rows", limit=3)
    assert prompts(python) == ["row 0", "row 1", "row 2"]


class _LazyRows(Sequence[Any]):
    """Rows that exist only when they are asked for; nobody may iterate over all at once."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: Any) -> Any:
        return {"prompt": f"row {number}", "answer": str(number)}

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("all rows were asked for at once")


def lazy_rows() -> _LazyRows:
    """A python source that reads its rows when asked."""
    return _LazyRows()


def test_a_hugging_face_data_set_from_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = {name: datasets.Dataset.from_list(ROWS[:n]) for name, n in (("train", 4), ("test", 2))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    settings = DataSettings(kind=DataKind.datasets, path=str(tmp_path / "saved"), split="test")
    assert prompts(settings) == ["0+1=", "1+1="]
    settings.split = "dev"
    with pytest.raises(DataError, match=r"data.split = 'dev': .* has train, test"):
        load_prompts(settings)
    settings.path = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_prompts(settings)


def test_numbers_of_a_data_set_keep_their_value(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "answer": datasets.Value("float32")}
    )
    rows = [{"prompt": "x", "answer": 0.1}, {"prompt": "y", "answer": 1e-5}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    loaded = load_prompts(DataSettings(kind=DataKind.datasets, path=str(tmp_path / "saved")))
    assert [loaded.row(n).answer for n in range(2)] == ["0.1", "0.00001"]
    assert loaded.row(1).id == "saved:2"


def test_a_python_source_takes_arguments() -> None:
    settings = DataSettings(
        kind=DataKind.python,
        path=f"{__name__}:rows_of_mine",
        arguments={"count": 2, "word": "two"},
    )
    assert prompts(settings) == ["two 0", "two 1"]
    settings.path = f"{__name__}:missing"
    with pytest.raises(ConfigError, match="data.path = .* cannot be imported: .* has no 'missing'"):
        load_prompts(settings)


def test_chain_sum_source_keeps_to_its_split() -> None:
    settings = DataSettings(chain_sum=ChainSumSettings(count=300))
    train = prompts(settings)
    settings.chain_sum.split = ChainSumSplit.heldout
    heldout = prompts(settings)
    assert len(set(train) | set(heldout)) == 600
    row = load_prompts(settings).row(0)
    assert str(sum(map(int, row.text.rstrip("=").split("+")))) == row.answer  # type: ignore[union-attr]


def test_more_chain_sums_than_there_are_name_the_key() -> None:
    settings = DataSettings(chain_sum=ChainSumSettings(terms=2, digits=1, count=100))
    with pytest.raises(DataError, match="data.chain_sum.count = 100: chain_sum has only .*ask for"):
        load_prompts(settings)


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[1], ROWS[1], {**ROWS[2], "answer": 9}])
    loaded = load_prompts(settings)
    assert len(loaded) == 5
    assert loaded.report.duplicates == 3
    assert str(loaded.report) == "5 prompts of 8 rows, 3 duplicate"
    settings.deduplicate = False
    assert len(load_prompts(settings)) == 8


def test_limit_comes_after_the_other_filters(tmp_path: Path) -> None:
    rows = [{"prompt": p, "answer": 0} for p in ("1", "1", "1234567890", "2", "3")]
    settings = jsonl(tmp_path / "a.jsonl", rows)
    settings.limit, settings.max_prompt_tokens, settings.over_length = 2, 5, OverLength.drop
    loaded = load_prompts(settings, tokenizer=character_tokenizer())
    assert [loaded.row(n).text for n in range(2)] == ["1", "2"]
    report = loaded.report
    assert (report.read, report.duplicates, report.too_long, report.beyond_limit) == (5, 1, 1, 1)
    assert report.used == len(loaded) == 2
    assert report.longest_prompt == 1


def test_long_prompts_are_refused_with_count_place_and_remedy(tmp_path: Path) -> None:
    rows = [{"prompt": "1" * n, "answer": 0} for n in (3, 6, 9, 4)]
    settings = jsonl(tmp_path / "a.jsonl", rows)
    settings.max_prompt_tokens = 5
    with pytest.raises(DataError) as caught:
        load_prompts(settings, tokenizer=character_tokenizer())
    assert "2 of 4 prompts are longer than data.max_prompt_tokens = 5" in str(caught.value)
    assert "longest: 9 tokens" in str(caught.value)
    assert "a.jsonl, line 3" in str(caught.value)
    assert "data.over_length to drop" in str(caught.value)


def test_dropping_every_prompt_is_an_error(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", [{"prompt": "123456", "answer": 0}])
    settings.max_prompt_tokens, settings.over_length = 5, OverLength.drop
    with pytest.raises(DataError, match="1 of 1 prompts are longer"):
        load_prompts(settings, tokenizer=character_tokenizer())


def test_the_teachers_longer_prompt_is_measured_apart(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "answer": 2, "shown": "1+1=2,1+1="},
        {"prompt": "2+1=", "answer": 3, "shown": "2+1="},
    ]
    settings = jsonl(tmp_path / "a.jsonl", rows)
    settings.fields.teacher_prompt, settings.max_prompt_tokens = "shown", 4
    report = load_prompts(settings, tokenizer=character_tokenizer()).report
    assert report.longest_prompt == 4
    assert report.sources == {"a.jsonl": SourceReport(prompts=2, longest_teacher_prompt=10)}


BAD_LINES = [
    ('{"prompt": "x", "answer": 1', "not valid JSON"),
    ("[1, 2]", "not list"),
    ('{"question": "x", "answer": 1}', r"column 'prompt' \(prompt\) is missing; .*'question'"),
    ('{"prompt": "x"}', r"column 'answer' \(answer\) is missing.*set data.fields.answer"),
    ('{"prompt": "  ", "answer": 1}', r"column 'prompt' \(prompt\) is empty"),
    ('{"prompt": null, "answer": 1}', "not null"),
    ('{"prompt": [], "answer": 1}', "empty list: give at least one chat message"),
    ('{"prompt": {"role": "user"}, "answer": 1}', "text or a list of chat messages, not dict"),
    (
        '{"prompt": [{"from": "human", "value": "x"}], "answer": 1}',
        "message 1 has 'from', 'value'",
    ),
    (
        '{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}',
        "message 1 has a part of type 'image': a prompt is text alone",
    ),
    ('{"prompt": [{"role": "user", "content": ""}], "answer": 1}', "last one is empty"),
    (
        '{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null,'
        ' "tool_calls": [{"function": {"name": "f"}}]}], "answer": 1}',
        "ends with tool calls of the assistant",
    ),
    ('{"prompt": [{"role": "user"}], "answer": 1}', "role and a text"),
    ('{"prompt": [{"role": "me", "content": "x"}], "answer": 1}', "role 'me'"),
    ('{"prompt": [{"role": "system", "content": "x"}], "answer": 1}', "no user message"),
    ('{"prompt": "x", "answer": [1]}', "must be text or a number, not list"),
    ('{"prompt": "x", "answer": ""}', r"column 'answer' \(answer\) is empty"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_reported_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine", "answer": 1}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"1 of 2 rows.*\n.*bad\.jsonl, line 3: .*{reason}"):
        load_prompts(DataSettings(kind=DataKind.jsonl, path=str(path)))


def test_bad_bytes_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "answer": 1}\n')
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        load_prompts(DataSettings(kind=DataKind.jsonl, path=str(path)))


def test_many_bad_lines_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("oops\n" * 25)
    with pytest.raises(DataError) as caught:
        load_prompts(DataSettings(kind=DataKind.jsonl, path=str(path)))
    assert "25 of 25 rows" in str(caught.value)
    assert str(caught.value).count("not valid JSON") == 10
    assert "and 15 more" in str(caught.value)


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    settings = jsonl(tmp_path / "a.jsonl", [{**row, "key": row["level"] % 3} for row in ROWS])
    settings.fields.id = "key"
    with pytest.raises(DataError, match=r"a.jsonl, line 1 and .*a.jsonl, line 4 have the same id"):
        load_prompts(settings)


def test_a_system_message_twice_is_refused(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    settings = jsonl(tmp_path / "a.jsonl", [{"prompt": chat, "answer": 1}])
    settings.system_prompt = "c"
    with pytest.raises(DataError, match=r"set data.system_prompt to null"):
        load_prompts(settings)


@pytest.mark.parametrize("kind", [DataKind.jsonl, DataKind.parquet])
def test_missing_empty_and_wrong_files(tmp_path: Path, kind: DataKind) -> None:
    missing = DataSettings(kind=kind, path=str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"data.path = '.*missing': no such file"):
        load_prompts(missing)
    with pytest.raises(DataError, match="is a folder"):
        load_prompts(DataSettings(kind=kind, path=str(tmp_path)))
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="has no rows" if kind == DataKind.jsonl else "Parquet"):
        load_prompts(DataSettings(kind=kind, path=str(tmp_path / "empty")), section="data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": DataKind.jsonl}, "eval.data.path is empty: kind jsonl needs a file"),
        ({"kind": DataKind.python, "path": "my.module"}, 'write it as "module:attr"'),
        ({"instruction": "Solve this."}, "does not contain {prompt}"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens = 0: must be at least 1"),
        ({"limit": 0}, "limit = 0: must be at least 1"),
        ({"chain_sum": ChainSumSettings(terms=1)}, "chain_sum.terms = 1: must be at least 2"),
        ({"fields": FieldSettings(prompt="")}, "fields.prompt is empty"),
    ],
)
def test_settings_that_no_run_can_have(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataSettings(**change).validate("eval.data")
    assert message in str(caught.value)
    assert str(caught.value).startswith("eval.data.")
