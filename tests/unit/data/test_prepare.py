"""`opd-ray prepare`: every set from its hub's form to ours, duplicates, bad rows, whole files."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from benchmark_files import EXCERPTS, WHOLE_SETS, needs_whole_sets, read_rows
from pyarrow import parquet

from opd_ray.cli import main
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.data.benchmarks import BENCHMARKS, after_hashes, aime_number, whole_number
from opd_ray.data.load import load_prompts
from opd_ray.data.prepare import PrepareReport, prepare
from opd_ray.data.rows import BadRow, DataError
from opd_ray.errors import ConfigError


def prepared(name: str, origin: Path | str, tmp_path: Path) -> tuple[list[Any], PrepareReport]:
    out = tmp_path / "out" / f"{name}.jsonl"
    report = prepare(name, [str(origin)], out)
    return read_rows(out), report


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def dapo(problem: str, answer: str, index: str) -> dict[str, Any]:
    """A row as the hub has it."""
    text = (
        "Solve the following math problem step by step. The last line of your response should be "
        "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
        f'\n\n{problem}\n\nRemember to put your answer on its own line after "Answer:".'
    )
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index},
    }


def test_gsm8k_answers_are_the_numbers_behind_the_hashes(tmp_path: Path) -> None:
    rows, report = prepared("gsm8k_train", EXCERPTS / "gsm8k_train.jsonl", tmp_path)
    assert (report.read, report.duplicates, report.written) == (5, 0, 5)
    raw = read_rows(EXCERPTS / "gsm8k_train.jsonl")
    for number, (row, source) in enumerate(zip(rows, raw, strict=True)):
        assert row["id"] == f"gsm8k_train-{number}"
        assert row["prompt"] == source["question"]
        assert row["source"] == "gsm8k_train"
        # By another way than the code's: all after the last line break.
        assert row["answer"] == source["answer"].splitlines()[-1][5:].replace(",", "")
    assert "," in raw[0]["answer"].splitlines()[-1]
    assert rows[2]["answer"] == "72"


def test_math500_keeps_answers_to_the_letter_and_its_own_ids(tmp_path: Path) -> None:
    rows, _ = prepared("math500", EXCERPTS / "math500.jsonl", tmp_path)
    raw = read_rows(EXCERPTS / "math500.jsonl")
    assert [(r["id"], r["answer"]) for r in rows] == [(r["unique_id"], r["answer"]) for r in raw]


def test_deepmath_repeats_are_dropped_and_counted(tmp_path: Path) -> None:
    rows, report = prepared("deepmath", EXCERPTS / "deepmath.jsonl", tmp_path)
    assert (report.read, report.duplicates, report.contradicting, len(rows)) == (5, 1, 0, 4)
    assert "5 rows read, 1 duplicates dropped, 4 problems written" in str(report)
    assert "MIT" in str(report)


def test_dapo_loses_its_instruction_and_its_hundredfold_rows(tmp_path: Path) -> None:
    rows = [dapo("What is $1+1$?", "2", "a"), dapo("What is $2+2$?", "4", "b")] * 100
    table = pyarrow.Table.from_pylist([*rows, dapo("What is $1+1$?", "3", "a")])
    parquet.write_table(table, tmp_path / "dapo.parquet")
    found, report = prepared("dapo_math_17k", tmp_path / "dapo.parquet", tmp_path)
    assert found == [
        {"id": "a", "prompt": "What is $1+1$?", "answer": "2", "source": "dapo_math_17k"},
        {"id": "b", "prompt": "What is $2+2$?", "answer": "4", "source": "dapo_math_17k"},
    ]
    assert (report.read, report.duplicates, report.contradicting) == (201, 199, 1)
    assert "1 of the duplicates give another answer" in str(report)


def test_dapo_with_half_an_instruction_is_a_bad_row(tmp_path: Path) -> None:
    row = dapo("What is $1+1$?", "2", "a")
    row["prompt"][0]["content"] = row["prompt"][0]["content"].split("\n\n")[1] + (
        '\n\nRemember to put your answer on its own line after "Answer:".'
    )
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: .*half of the instruction"):
        prepared("dapo_math_17k", jsonl(tmp_path / "a.jsonl", row), tmp_path)


def test_contest_answers_come_from_the_answer_column_as_plain_numbers(tmp_path: Path) -> None:
    solution = r"So it is $\boxed{12}$. No: $\boxed{\textbf{(25)}}$."
    aime = {"id": 60, "problem": "P", "solution": solution, "answer": "025", "year": "2024"}
    rows, _ = prepared("aime24", jsonl(tmp_path / "a.jsonl", aime), tmp_path)
    assert rows == [{"id": "aime24-60", "prompt": "P", "answer": "25", "source": "aime24"}]
    rows, report = prepared("aime25", jsonl(tmp_path / "b.jsonl", {**aime, "id": "0"}), tmp_path)
    assert rows[0]["answer"] == "25"
    assert "the whole set has 30 problems" in str(report)
    amc = {"id": 3, "question": "Q", "answer": "27.0", "url": "u"}
    rows, _ = prepared("amc23", jsonl(tmp_path / "c.jsonl", amc), tmp_path)
    assert (rows[0]["id"], rows[0]["answer"]) == ("amc23-3", "27")


def test_plain_numbers() -> None:
    texts = ["0", "000", "027", "27.0", "-3.", "+4", "-0", " 5 "]
    assert [whole_number(text) for text in texts] == ["0", "0", "27", "27", "-3", "4", "0", "5"]
    assert after_hashes("1+1=<<1+1=2>>2\n#### 1,234,567") == "1234567"
    for bad in ("", "2.5", r"\frac12", "x", "1,000"):
        with pytest.raises(BadRow):
            whole_number(bad)
    for bad in ("1000", "-1"):
        with pytest.raises(BadRow, match="0 to 999"):
            aime_number(bad)


@needs_whole_sets
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("math500", "math500"),
        ("aime24", "aime_2024"),
        ("aime25", "aime_2025"),
        ("amc23", "amc23"),
        ("gsm8k_train", "gsm8k_train"),
    ],
)
def test_whole_sets_have_every_problem_and_keep_the_key(
    tmp_path: Path, name: str, file: str
) -> None:
    rows, report = prepared(name, WHOLE_SETS / f"{file}.jsonl", tmp_path)
    key = read_rows(WHOLE_SETS / f"{file}.jsonl")
    assert len(rows) == BENCHMARKS[name].problems
    assert report.duplicates == 0
    assert [row["answer"] for row in rows] == [row["answer"].strip() for row in key]
    assert [row["prompt"] for row in rows] == [row["prompt"].strip() for row in key]


@needs_whole_sets
def test_the_first_box_of_the_aime_2024_solutions_is_wrong_five_times(tmp_path: Path) -> None:
    path = WHOLE_SETS / "aime_2024.jsonl"
    rows, _ = prepared("aime24", path, tmp_path)
    wrong = []
    for row, source in zip(rows, read_rows(path), strict=True):
        assert row["answer"] == source["answer"]
        scraped = re.search(r"\\boxed\{([^}]*)\}", source["solution"])
        if scraped is None or scraped.group(1).lstrip("0") != row["answer"]:
            wrong.append(row["id"].rpartition("-")[2])
    assert wrong == ["60", "77", "79", "80", "88"]


@needs_whole_sets
def test_deepmath_subset_has_four_repeats(tmp_path: Path) -> None:
    _, report = prepared("deepmath", WHOLE_SETS / "deepmath_5k.jsonl", tmp_path)
    assert (report.read, report.duplicates, report.written) == (4994, 4, 4990)


def test_json_parquet_and_data_set_folders_give_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    raw = read_rows(EXCERPTS / "math500.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(raw))
    parquet.write_table(pyarrow.Table.from_pylist(raw), tmp_path / "a.parquet")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(raw)}).save_to_disk(tmp_path / "saved")
    expected, _ = prepared("math500", EXCERPTS / "math500.jsonl", tmp_path)
    for origin in ("a.json", "a.parquet", "saved"):
        assert prepared("math500", tmp_path / origin, tmp_path)[0] == expected


def test_without_files_the_hub_is_asked_for_the_sets_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(read_rows(EXCERPTS / "gsm8k_train.jsonl"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    report = prepare("gsm8k_train", [], tmp_path / "a.jsonl")
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]
    assert report.written == 5


def test_several_files_are_one_set(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "1.jsonl", {"question": "a", "answer": "1"})
    two = jsonl(
        tmp_path / "2.jsonl", {"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}
    )
    report = prepare("gsm8k", [str(one), str(two)], tmp_path / "out.jsonl")
    assert (report.read, report.duplicates) == (3, 1)
    ids = [row["id"] for row in read_rows(tmp_path / "out.jsonl")]
    assert ids == ["gsm8k-0", "gsm8k-2"]


BAD = [
    ({"question": "x"}, r"no column for the answer \(answer\); the row has question"),
    ({"answer": "1"}, r"no column for the problem \(problem or question or prompt\)"),
    ({"question": " ", "answer": "1"}, "the problem is empty"),
    ({"question": "x", "answer": "no number"}, "'no number' is no whole number"),
    ({"question": "x", "answer": [1]}, "must be text or a number, not list"),
    ({"question": [{"role": "tool", "content": "x"}], "answer": "1"}, "one user message"),
    ([1], "a row must be an object with named columns, not list"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, row: Any, reason: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "fine", "answer": "1"}, row)
    out = tmp_path / "out.jsonl"
    out.write_text("as it was")
    with pytest.raises(
        DataError, match=rf"1 of 2 rows.*nothing was written:\n.*a\.jsonl, line 2: .*{reason}"
    ):
        prepare("gsm8k", [str(path)], out)
    assert out.read_text() == "as it was"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out.jsonl"]


def test_many_bad_rows_are_counted_and_repeated_ids_refused(tmp_path: Path) -> None:
    rows = [{"problem": f"p{n}", "answer": "x", "unique_id": "same"} for n in range(14)]
    with pytest.raises(DataError) as caught:
        prepare("math500", [str(jsonl(tmp_path / "a.jsonl", *rows))], tmp_path / "out.jsonl")
    assert "13 of 14 rows" in str(caught.value)
    assert "line 2: id 'same' is that of" in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_origins_and_names_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match="prepare 'math50': there is dapo_math_17k, deepmath"):
        prepare("math50", [], out)
    with pytest.raises(DataError, match=r"prepare math500: --from '.*gone\.jsonl': no such file"):
        prepare("math500", [str(tmp_path / "gone.jsonl")], out)
    with pytest.raises(DataError, match=r"cannot be loaded.*give a local copy's files with --from"):
        prepare("math500", [str(tmp_path / "gone")], out)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="must hold a list"):
        prepare("math500", [str(tmp_path / "a.json")], out)
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare("math500", [str(EXCERPTS / "math500.jsonl")], tmp_path / "a.json" / "out.jsonl")
    assert not out.exists()


def test_the_command_and_the_kind_prepared_meet_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPD_RAY_DATA", str(tmp_path / "sets"))
    settings = DataSettings(kind=DataKind.prepared, path="math500")
    with pytest.raises(DataError) as caught:
        load_prompts(settings, section="eval.tasks[0].data")
    expected = tmp_path / "sets" / "math500.jsonl"
    assert f"eval.tasks[0].data.path = 'math500': there is no {expected}" in str(caught.value)
    assert f"opd-ray prepare math500 --out {expected}" in str(caught.value)
    assert main(["prepare", "math500", "--from", str(EXCERPTS / "math500.jsonl")]) == 0
    assert str(expected) in capsys.readouterr().out
    loaded = load_prompts(settings)
    raw = read_rows(EXCERPTS / "math500.jsonl")
    assert [loaded.row(n).id for n in range(len(loaded))] == [row["unique_id"] for row in raw]
    assert {loaded.row(n).source for n in range(len(loaded))} == {"math500"}
    monkeypatch.delenv("OPD_RAY_DATA")
    settings.path = str(tmp_path / "sets" / "math500")
    assert len(load_prompts(settings)) == len(raw)
    settings.path = "math50"
    with pytest.raises(DataError, match="did you mean math500"):
        load_prompts(settings)


def test_compressed_files_and_numbers_that_are_no_whole_ones(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"question": "x", "answer": 1e-05})
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    rows, _ = prepared("math500", packed, tmp_path)
    assert rows[0]["answer"] == "0.00001"
    packed = jsonl(tmp_path / "b.jsonl", {"question": "half \ud83d", "answer": 1})
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: the problem holds half a character"):
        prepared("math500", packed, tmp_path)
