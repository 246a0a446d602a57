"""Plans scored: shares with errors clustered by task, the evaluator's files, the evaluator."""

from __future__ import annotations

import json
import shutil
from math import isnan, sqrt
from pathlib import Path
from typing import Any

import pytest
from deepplanning_data import CHECKOUT, needs_checkout, write_checkout, write_database, write_tasks

from opd_ray.cli import main
from opd_ray.deepplanning.checkout import Checkout, read_tasks
from opd_ray.deepplanning.estimate import share
from opd_ray.deepplanning.responses import read_responses
from opd_ray.deepplanning.synthetic.gold_plan import gold_plan
from opd_ray.deepplanning.synthetic.write import write_databases
from opd_ray.deepplanning.travel.score import Judged
from opd_ray.errors import InputError
from opd_ray.evaluation.folder import ProblemRecord


def plan(bar: str, train: str = "G7798") -> str:
    return (
        "<plan>Day 1:\nCurrent City: from Hefei to Nanjing\n"
        f"08:00-09:05 | travel_intercity_public | train {train}, A - B, ¥1/person\n"
        f"11:00-12:00 | meal | Lunch, {bar}, ¥1/person\n</plan>"
    )


def record(task: int, *responses: str, **other: Any) -> dict[str, Any]:
    return {"id": f"deepplanning_travel-{task}", "responses": list(responses), **other}


def write_records(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def three_tasks(tmp_path: Path) -> list[dict[str, Any]]:
    write_tasks(tmp_path / "tasks.json", 3)
    return read_tasks(tmp_path / "tasks.json")


def responses_file(tmp_path: Path) -> Path:
    """Two samples each: 2 and 1 of 2 constraints, 1 and none, none and 0 of a plan."""
    return write_records(
        tmp_path / "r.jsonl",
        record(0, plan("Bar 0"), plan("Bar 0", "G1")),
        record(1, plan("Bar"), "no plan"),
        record(2, "", "<plan>nothing | to see</plan>"),
        record(9, "of no task"),
    )


def test_a_share_and_its_error_by_hand() -> None:
    of = share([1.5, 0.5, 0.0], [2, 2, 2])
    assert of.value == pytest.approx(2 / 6)
    # Of the tasks' own shares 3/4, 1/4, 0: deviation (ddof 1) over the root of 3.
    squares = (3 / 4 - 1 / 3) ** 2 + (1 / 4 - 1 / 3) ** 2 + (1 / 3) ** 2
    assert of.standard_error == pytest.approx(sqrt(squares / 2) / sqrt(3))
    # Wholes that differ: residuals 3 - 4 * 4/6 and 1 - 2 * 4/6, over 6.
    of = share([3, 1], [4, 2])
    assert of.value == pytest.approx(2 / 3)
    assert of.standard_error == pytest.approx(sqrt(2 * (1 / 9 + 1 / 9)) / 6)
    alone = share([1], [2])
    assert alone.value == 0.5
    assert isnan(alone.standard_error)
    assert str(alone) == "50.0%"
    for parts, wholes in (([], []), ([1], [0]), ([1], [1, 2])):
        with pytest.raises(ValueError, match="a share needs"):
            share(parts, wholes)


def test_figures_over_tasks_and_samples(tmp_path: Path) -> None:
    tasks = three_tasks(tmp_path)
    responses = read_responses([responses_file(tmp_path)], ["0", "1", "2"])
    scores = Judged.of(tasks, responses).scores()
    assert scores.samples == 2
    assert scores.constraints_met.value == pytest.approx((1.5 + 0.5 + 0) / 6)
    assert scores.constraints_met.standard_error == pytest.approx(0.220479, abs=1e-6)
    assert scores.best.value == pytest.approx((2 + 1 + 0) / 6)
    assert scores.success.value == pytest.approx(0.5 / 3)
    assert scores.plan_given.value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert {kind: of.value for kind, of in scores.by_kind.items()} == {
        "restaurant_must_eat_named": pytest.approx(1 / 3),
        "train_seat_class": pytest.approx((0.5 + 0.5) / 3),
    }
    assert scores.unread_lines == 2
    said = str(scores)
    assert "3 tasks, 2 samples each; ±" in said
    assert "hard constraints met     33.3% ± 22.0%" in said
    assert "  train_seat_class: 33.3% ± 16.7% (3 tasks)" in said
    assert "synthetic" not in said
    assert json.loads(scores.to_json())["best"]["tasks"] == 3


def test_several_files_are_more_samples(tmp_path: Path) -> None:
    first = write_records(tmp_path / "a.jsonl", record(0, "a"), record(1, "b"))
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "d"}]]
    second = write_records(
        tmp_path / "b.jsonl", record(1, "d", messages=messages), {"id": "0", "responses": ["c"]}
    )
    with second.open("a", encoding="utf-8") as file:
        file.write('{"id": "deepplanning_travel-0", "resp')  # cut off by a kill
    found = read_responses([first, second], ["0", "1"])
    assert {task: [one.text for one in of] for task, of in found.items()} == {
        "0": ["a", "c"],
        "1": ["b", "d"],
    }
    assert found["1"][1].messages == messages[0]
    assert found["1"][0].messages == ()


def test_the_records_of_an_evaluation_are_read(tmp_path: Path) -> None:
    kept = ProblemRecord(
        id="deepplanning_travel-1",
        answer="",
        responses=["a", "b"],
        extracted=["a", "b"],
        correct=[False, True],
        tokens=[1, 1],
        finish_reasons=["stop", "turns"],
        figures=[{"environment/success": 0.0}, {"environment/success": 1.0}],
        messages=[[{"role": "assistant", "content": "a"}], []],
    )
    path = tmp_path / "sampled.jsonl"
    path.write_text(kept.to_line(), encoding="utf-8")
    first, second = read_responses([path], ["1"])["1"]
    assert (first.text, second.text) == ("a", "b")
    assert first.messages == [{"role": "assistant", "content": "a"}]


def test_a_plan_beside_a_call_is_no_answer(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "q"}
    said = {"role": "assistant", "content": "a"}
    calls = said | {"tool_calls": [{}]}
    conversations = [[asked, said], [asked, calls], [asked, calls, {"role": "tool"}], []]
    one = record(0, "a", "b", "c", "d", messages=conversations)
    found = read_responses([write_records(tmp_path / "r.jsonl", one)], ["0"])["0"]
    assert [response.text for response in found] == ["a", "", "", "d"]
    assert found[1].messages == conversations[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: JSONDecodeError"),
        ("\n\n{", "line 3: JSONDecodeError"),
        ("[]", "line 1: has no list of texts as 'responses'"),
        ('{"responses": [1]}', "line 1: has no list of texts as 'responses'"),
        ('{"responses": ["a"]}', "line 1: has no text as 'id'"),
        ('{"id": "0", "responses": ["a"], "messages": [1, 2]}', "not one list a response"),
        ('{"id": "0", "responses": ["a"], "messages": [3]}', "line 1: 'messages': TypeError"),
        ('{"id": "1", "responses": ["a"]}', "1 of 2 tasks have none (task '0' is the first)"),
        (
            '{"id": "1", "responses": ["a", "b"]}\n{"id": "0", "responses": ["a"]}',
            "task '0' has 1 responses, others up to 2",
        ),
    ],
)
def test_records_that_are_none(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_responses([path], ["0", "1"])
    assert said in str(raised.value)
    with pytest.raises(InputError, match=r"x.jsonl: FileNotFoundError"):
        read_responses([tmp_path / "x.jsonl"], ["0"])


def score(tmp_path: Path, *options: str) -> int:
    three_tasks(tmp_path)
    arguments = ["deepplanning", "score", "--responses", str(responses_file(tmp_path))]
    arguments += ["--test", str(tmp_path / "tasks.json"), "--out", str(tmp_path / "out")]
    return main([*arguments, *options])


def test_the_files_of_the_evaluator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = str(write_checkout(tmp_path / "c"))
    assert score(tmp_path, "--from", checkout, "--without-official") == 0
    assert "hard constraints met     33.3% ± 22.0%" in capsys.readouterr().out
    out = tmp_path / "out"
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "problems.json",
        "sample_0/converted_plans/id_0_converted.json",
        "sample_0/converted_plans/id_1_converted.json",
        "sample_0/reports/id_0.txt",
        "sample_0/reports/id_1.txt",
        "sample_0/trajectories/id_0.json",
        "sample_0/trajectories/id_1.json",
        "sample_0/trajectories/id_2.json",
        "sample_1/converted_plans/id_0_converted.json",
        "sample_1/converted_plans/id_2_converted.json",
        "sample_1/reports/id_0.txt",
        "sample_1/reports/id_2.txt",
        "sample_1/trajectories/id_0.json",
        "sample_1/trajectories/id_1.json",
        "sample_1/trajectories/id_2.json",
        "scores.json",
    ]
    unread = json.loads((out / "sample_1/converted_plans/id_2_converted.json").read_text())
    assert unread == {"budget_summary": {}, "daily_plans": []}
    trajectory = json.loads((out / "sample_1/trajectories/id_1.json").read_text())
    assert trajectory["messages"] == [{"role": "assistant", "content": "no plan"}]
    assert trajectory["final_plan"] == ""
    assert json.loads((out / "scores.json").read_text())["by_kind"]["train_seat_class"] == {
        "value": pytest.approx(1 / 3),
        "standard_error": pytest.approx(1 / 6),
        "tasks": 3,
    }
    # Nothing that was written is written over.
    assert score(tmp_path, "--from", checkout, "--without-official") == 2
    assert "out: is not empty" in capsys.readouterr().err


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = str(write_checkout(tmp_path / "c"))
    assert score(tmp_path, "--from", checkout) == 2
    assert "eval_converted.py: is not there" in capsys.readouterr().err
    evaluation = Path(checkout) / "benchmark/deepplanning/travelplanning/evaluation"
    (evaluation / "eval_converted.py").write_text("")
    assert score(tmp_path, "--from", checkout) == 2
    assert "database_en: there is no such folder" in capsys.readouterr().err
    write_database(tmp_path / "d" / "id_0")
    assert score(tmp_path, "--from", checkout, "--database", str(tmp_path / "d")) == 2
    assert "there is no folder id_1 for task 1 (2 tasks have none)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for number in (1, 2):
        shutil.copytree(tmp_path / "d" / "id_0", tmp_path / "d" / f"id_{number}")
    (evaluation / "__init__.py").write_text("import not_installed_anywhere")
    assert score(tmp_path, "--from", checkout, "--database", str(tmp_path / "d")) == 2
    said = capsys.readouterr().err
    assert "No module named 'not_installed_anywhere'; install what it needs beside opd-ray" in said
    shutil.rmtree(tmp_path / "out")
    (evaluation / "__init__.py").write_text("def evaluate_plans(*a, **b): raise OSError('full')")
    assert score(tmp_path, "--from", checkout, "--database", str(tmp_path / "d")) == 1
    said = capsys.readouterr().err
    assert "the official evaluator failed: OSError: full; all that it said is in" in said
    assert "Traceback" in (tmp_path / "out" / "evaluator.log").read_text()
    three_tasks(tmp_path)
    (tmp_path / "tasks.json").unlink()
    arguments = ["deepplanning", "score", "--responses", "r", "--from", checkout, "--out", "o"]
    assert main([*arguments, "--test", str(tmp_path / "tasks.json")]) == 2
    assert "tasks.json: is not there; make it with: opd-ray prepare" in capsys.readouterr().err


_EVALUATOR = """
import json
def evaluate_plans(result_dir, test_data_path, database_dir, workers):
    assert workers == 3 and (database_dir / "id_0").is_dir()
    def result(name, score):
        scores = dict.fromkeys(
            ["commonsense_weighted_score", "personalized_score", "composite_score"], score
        )
        return {"success": True, "sample_id": name, "scores": scores | {"case_acc": 0.0}}
    found = [result("0", 0.75), {"success": False, "sample_id": "1", "error": "no such thing"}]
    assert test_data_path.name == "tasks.json"
    (result_dir / "evaluation").mkdir()
    path = result_dir / "evaluation" / "evaluation_summary.json"
    path.write_text(json.dumps({"results": found}))
"""


def test_plans_on_which_the_evaluator_fails_count_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = write_checkout(tmp_path / "c")
    evaluation = checkout / "benchmark/deepplanning/travelplanning/evaluation"
    (evaluation / "eval_converted.py").write_text("")
    (evaluation / "__init__.py").write_text(_EVALUATOR)
    for number in range(3):
        write_database(tmp_path / "d" / f"id_{number}")
    options = ["--from", str(checkout), "--database", str(tmp_path / "d"), "--workers", "3"]
    assert score(tmp_path, *options) == 0
    said = capsys.readouterr().out
    # Of task 0 in both samples 0.75, of the two others nothing: a mean of 0.25 over three tasks.
    assert "  commonsense_score: 25.0% ± 25.0%" in said
    assert "it failed on 2 plans, which count 0" in said
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["official_failed"] == 2
    assert scores["official"]["case_acc"]["value"] == 0.0


@needs_checkout
def test_the_evaluator_itself_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = three_tasks(tmp_path)
    for task in tasks:
        task["meta_info"] |= {"org": "Hefei", "dest": ["Nanjing"], "depart_weekday": 3}
        write_database(tmp_path / "d" / f"id_{task['id']}")
    named = [task | {"databases": str(tmp_path / "d"), "synthetic": True} for task in tasks]
    (tmp_path / "test.json").write_text(json.dumps(named), encoding="utf-8")
    arguments = ["deepplanning", "score", "--responses", str(responses_file(tmp_path))]
    arguments += ["--test", str(tmp_path / "test.json"), "--from", CHECKOUT]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "each on a synthetic database, which says nothing of the benchmark;" in said
    assert "official evaluator (synthetic database)" in said
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    # The one plan that meets all constraints, of six.
    assert scores["official"]["personalized_score"]["value"] == pytest.approx(1 / 6)
    assert scores["success"] == scores["official"]["personalized_score"]
    assert scores["official_failed"] == 0
    commonsense = scores["official"]["commonsense_score"]["value"]
    assert 0 < commonsense < 1
    means = []
    for sample in (0, 1):
        summary = tmp_path / "out" / f"sample_{sample}" / "evaluation" / "evaluation_summary.json"
        found = json.loads(summary.read_text(encoding="utf-8"))
        assert found["total_test_samples"] == 3
        means.append(found["metrics"]["commonsense_score"])
    assert commonsense == pytest.approx(sum(means) / 2)
    (result,) = [r for r in found["results"] if r["sample_id"] == "2"]
    assert result["scores"]["composite_score"] == 0.0  # a plan that could not be read


@needs_checkout
def test_a_student_that_writes_the_gold_plans_has_all_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of two, three, ... seven days.
    by_days = {task["meta_info"]["days"]: task for task in Checkout.at(CHECKOUT).travel_tasks}
    tasks = list(by_days.values())
    assert sorted(by_days) == [2, 3, 4, 5, 6, 7]
    write_databases(tasks, tmp_path / "d", 0)
    (tmp_path / "test.json").write_text(json.dumps(tasks), encoding="utf-8")
    records = [
        record(task["id"], f"A trip.</think>\n{gold_plan(task, tmp_path / 'd').text()}", "none")
        for task in tasks
    ]
    arguments = ["deepplanning", "score", "--from", CHECKOUT, "--out", str(tmp_path / "out")]
    arguments += ["--responses", str(write_records(tmp_path / "r.jsonl", *records))]
    arguments += ["--test", str(tmp_path / "test.json"), "--database", str(tmp_path / "d")]
    assert main(arguments) == 0
    assert "all constraints met      50.0% ± 0.0%" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert scores["best"]["value"] == 1.0
    assert scores["constraints_met"]["value"] == 0.5
    assert {kind: of["value"] for kind, of in scores["by_kind"].items()} == dict.fromkeys(
        scores["by_kind"], 0.5
    )
    assert (scores["unread_lines"], scores["official_failed"]) == (0, 0)
    summary = tmp_path / "out" / "sample_0" / "evaluation" / "evaluation_summary.json"
    metrics = json.loads(summary.read_text(encoding="utf-8"))["metrics"]
    for name in ("delivery_rate", "commonsense_score", "personalized_score", "case_acc"):
        assert metrics[name] == 1.0, name
