"""Asking, recording, resuming and adding up: an evaluation without engines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opd_ray.config.schema import Config, EvalTask, StudentSettings
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.errors import OutputFolderError
from opd_ray.evaluation.ask import EvalMode, answers, eval_modes
from opd_ray.evaluation.figures import figures
from opd_ray.evaluation.folder import EvaluationFolder, ProblemRecord
from opd_ray.evaluation.results import read_results, render, write_results
from opd_ray.evaluation.run import evaluation_settings, model_fingerprint
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.tasks import get_task
from opd_ray.types import EpisodeStart, Rollout, RolloutRequest, Sampling

TOKENIZER = character_tokenizer()


def ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"], dtype=np.int32)


class _Writer:
    """Responses that follow from the seed alone, in an order that does not."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def write(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Iterator[Rollout]:
        self.asked += [request.rollout_id for request in requests]
        nothing = np.empty(0, dtype=np.float32)
        for at in np.random.default_rng(len(requests)).permutation(len(requests)):
            request = requests[at]
            response = ids(f"{3 + request.seed % 3}.")
            yield Rollout(
                request.rollout_id,
                request.prompt_id,
                request.sample,
                request.prompt_ids,
                response,
                np.ones(len(response), dtype=np.uint8),
                nothing,
                nothing,
                "stop" if request.seed % 2 else "length",
                0,
            )


class _Task:
    """Right is a response that is the answer and a full stop."""

    name = "digit"

    def extract(self, response_text: str) -> str | None:
        return response_text.removesuffix(".") or None

    def verify(self, response_text: str, answer: str) -> bool:
        return response_text == f"{answer}."


def held_out(problems: int = 5, **settings: Any) -> HeldOutTask:
    prompts = [Prompt(f"p{n}", ids(f"{n}+1="), ids(f"{n}+1=")) for n in range(problems)]
    answers = [str(3 + n % 3) for n in range(problems)]
    return HeldOutTask(EvalTask(name="digits", **settings), _Task(), prompts, answers)


def mode(samples: int = 4, problems: int = 5) -> EvalMode:
    (found,) = eval_modes(held_out(problems, greedy=False, samples=samples), max_new_tokens=8)
    return found


def asked_for(asked: EvalMode, done: Sequence[str] = ()) -> dict[str, ProblemRecord]:
    records = answers(_Writer(), asked, TOKENIZER, seed=0, done=done)  # type: ignore[arg-type]
    return {record.id: record for record in records}


def test_a_record_has_every_sample_in_order() -> None:
    stream = _Writer()
    records = list(answers(stream, mode(), TOKENIZER, seed=0))  # type: ignore[arg-type]
    assert sorted(record.id for record in records) == [f"p{n}" for n in range(5)]
    assert len(stream.asked) == 20
    for record in records:
        assert [len(found) for found in (record.responses, record.tokens, record.correct)] == [
            4
        ] * 3
        assert record.extracted == [text[0] for text in record.responses]
        assert record.correct == [text == f"{record.answer}." for text in record.responses]
        assert record.tokens == [2] * 4
    assert len({reason for record in records for reason in record.finish_reasons}) == 2
    assert ProblemRecord.from_line(records[0].to_line()) == records[0]


def test_who_else_is_asked_changes_nothing() -> None:
    everyone = asked_for(mode())
    rest = asked_for(mode(), done=["p1", "p4"])
    assert rest == {key: everyone[key] for key in ("p0", "p2", "p3")}
    assert asked_for(mode(), done=list(everyone)) == {}


def test_the_ways_of_asking() -> None:
    both = eval_modes(held_out(samples=4, temperature=0.6, top_p=0.9), max_new_tokens=8)
    assert [(way.name, way.samples, way.sampling) for way in both] == [
        ("greedy", 0, Sampling(temperature=0.0, max_tokens=8)),
        ("sampled", 4, Sampling(0.6, 0.9, max_tokens=8)),
    ]
    assert [str(way) for way in both] == ["greedy", "4 samples, T = 0.6, top-p = 0.9"]
    (own,) = eval_modes(held_out(max_new_tokens=3), max_new_tokens=8)
    assert own.sampling.max_tokens == 3


def record(key: str, correct: list[bool], extracted: list[str | None], tokens: list[int]) -> Any:
    ends = ["length" if count == 10 else "stop" for count in tokens]
    return ProblemRecord(key, "1", ["x"] * len(correct), extracted, correct, tokens, ends)


# By hand: means 1/2 and 1; votes 1 right; pass@2 1 - C(2,2)/C(4,2) = 5/6 and 1.
BY_HAND = [
    record("a", [True, False, True, False], ["1", "2", "1", None], [1, 2, 3, 10]),
    record("b", [True] * 4, ["1"] * 4, [4, 4, 4, 4]),
]


def test_figures_by_hand() -> None:
    found = figures("t", 4, BY_HAND)
    assert found == pytest.approx(
        {
            "eval/t/mean@4": 0.75,
            "eval/t/mean@4_se": 0.25,
            "eval/t/pass@2": (5 / 6 + 1) / 2,
            "eval/t/pass@4": 1.0,
            "eval/t/maj@4": 1.0,
            "eval/t/maj@4_se": 0.0,
            "eval/t/tokens@4": 4.0,
            "eval/t/tokens_q90@4": 5.8,
            "eval/t/truncated@4": 1 / 8,
        }
    )


def test_greedy_figures_by_hand() -> None:
    records = [record("a", [True], ["1"], [2]), record("b", [False], [None], [10])]
    assert figures("t", 0, records) == pytest.approx(
        {
            "eval/t/accuracy": 0.5,
            "eval/t/accuracy_se": 0.5,
            "eval/t/tokens": 6.0,
            "eval/t/tokens_q90": 9.2,
            "eval/t/truncated": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("samples", "tries"), [(1, [1]), (2, [2]), (6, [2, 4, 6]), (16, [2, 4, 8, 16])]
)
def test_tries_of_pass_at_k(samples: int, tries: list[int]) -> None:
    records = [record("a", [True] * samples, ["1"] * samples, [1] * samples)]
    found = figures("t", samples, records)
    assert [name for name in found if "/pass@" in name] == [f"eval/t/pass@{k}" for k in tries]


SETTINGS = {
    "model": "m",
    "seed": 0,
    "dtype": "float32",
    "tasks": {
        "t": {
            "task": "math",
            "problems": 2,
            "sampled": {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 10},
        }
    },
}


def test_a_folder_goes_on_after_a_cut_off_line(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path / "out") as folder:
        folder.begin(SETTINGS)
        assert folder.records("t", "sampled") == {}
        with folder.appending("t", "sampled") as keep:
            keep(BY_HAND[0])
        with (tmp_path / "out" / "t" / "sampled.jsonl").open("a") as file:
            file.write(BY_HAND[1].to_line()[:40])
    with EvaluationFolder(tmp_path / "out") as folder:
        folder.begin(SETTINGS)
        assert list(folder.records("t", "sampled")) == ["a"]
        (result,) = read_results(folder)
        assert (result.answered, result.problems, result.figures) == (1, 2, {})
        assert "1 answered so far" in render([result], "m")
        with folder.appending("t", "sampled") as keep:
            keep(BY_HAND[1])
        assert folder.records("t", "sampled") == {"a": BY_HAND[0], "b": BY_HAND[1]}


def test_a_folder_whose_only_line_was_cut_off_starts_anew(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path) as folder:
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "sampled.jsonl").write_text(BY_HAND[0].to_line()[:40])
        with folder.appending("t", "sampled") as keep:
            keep(BY_HAND[0])
        assert folder.records("t", "sampled") == {"a": BY_HAND[0]}


def test_other_settings_are_refused_and_further_tasks_welcome(tmp_path: Path) -> None:
    def with_task(name: str, **mode: Any) -> dict[str, Any]:
        return {**SETTINGS, "tasks": {name: {"task": "math", "problems": 2, **mode}}}

    with EvaluationFolder(tmp_path) as folder:
        folder.begin(SETTINGS)
        for other, message in (
            ({**SETTINGS, "model": "n"}, "model: m -> n"),
            (with_task("t", sampled={"samples": 8}), "tasks.t.sampled.samples: 4 -> 8"),
            ({**SETTINGS, "tasks": {"t": {"problems": 3}}}, "tasks.t.problems: 2 -> 3"),
        ):
            with pytest.raises(OutputFolderError, match="other settings") as caught:
                folder.begin(other)
            assert message in str(caught.value)
        folder.begin(with_task("t", greedy={"max_new_tokens": 10}))
        folder.begin(with_task("u", greedy={"max_new_tokens": 10}))
        assert set(folder.settings["tasks"]) == {"t", "u"}
        assert set(folder.settings["tasks"]["t"]) >= {"greedy", "sampled"}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        EvaluationFolder(tmp_path),
        pytest.raises(OutputFolderError, match="--out = .*in use by process"),
        EvaluationFolder(tmp_path),
    ):
        pass


def test_results_say_the_same_in_every_form(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path) as folder:
        folder.begin(SETTINGS)
        with folder.appending("t", "sampled") as keep:
            for one in reversed(BY_HAND):
                keep(one)
        results = read_results(folder)
        for _ in range(2):  # the second time in place of the first
            write_results(folder, results, "a model", {"vllm": "1"})
    expected = figures("t", 4, BY_HAND)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["figures"] == expected
    assert (found["model"], found["settings"]) == ("a model", SETTINGS)
    text = (tmp_path / "results.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| t "))
    cells = ["t", "2", "n = 4, T = 1, top-p = 1", "75.0 ± 25.0", "100.0", "100.0 ± 0.0"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [*cells, "4", "6", "12.5"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown == {name: [pytest.approx(value)] for name, value in expected.items()}


def test_another_environment_or_argument_is_another_evaluation(tmp_path: Path) -> None:
    def settings(**environments: Any) -> dict[str, Any]:
        own = {"environments": environments} if environments else {}
        return {**SETTINGS, "tasks": {"t": {"problems": 1, **own}}}

    def begin(name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
        with EvaluationFolder(tmp_path / name) as folder:
            folder.begin(first)
            folder.begin(first)
            with pytest.raises(OutputFolderError, match="other settings") as refused:
                folder.begin(second)
        return str(refused.value)

    plain, sized = {"path": "m:E", "arguments": {}}, {"path": "m:E", "arguments": {"size": 4}}
    grown = begin("a", settings(environment=plain), settings(environment=sized))
    assert "(tasks.t.environments.environment.arguments.size: (none) -> 4)" in grown
    shrunk = begin("b", settings(environment=sized), settings(environment=plain))
    assert "(tasks.t.environments.environment.arguments.size: 4 -> (none))" in shrunk
    assert "path: (none) -> m:E" in begin("c", settings(), settings(environment=plain))
    moved = begin("d", settings(environment=plain), settings(**{"environments.x": plain}))
    assert "environments.environments.x.path: (none) -> m:E" in moved


def test_one_problem_has_no_standard_error_but_valid_json(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path) as folder:
        folder.begin({**SETTINGS, "tasks": {"t": {"problems": 1, "greedy": {}}}})
        with folder.appending("t", "greedy") as keep:
            keep(record("a", [True], ["1"], [2]))
        results = read_results(folder)
        assert math.isnan(results[0].figures["eval/t/accuracy_se"])
        write_results(folder, results, "m", {})
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["figures"]["eval/t/accuracy_se"] is None
    assert "| 100.0 " in (tmp_path / "results.md").read_text()


def test_settings_follow_prompts_answers_model_and_sampling(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(3 << 20))
    config = Config(student=StudentSettings(path=str(model)))

    def settings(task: HeldOutTask) -> dict[str, Any]:
        return evaluation_settings(config, eval_modes(task, 8))

    same = settings(held_out(samples=4))
    assert same == settings(held_out(samples=4))
    assert same["tasks"]["digits"]["sampled"]["samples"] == 4
    other = held_out(samples=4)
    changed = HeldOutTask(other.settings, other.task, other.prompts, ["9", *other.answers[1:]])
    assert settings(changed) != same
    assert settings(held_out(samples=4, temperature=0.5)) != same
    assert settings(held_out(6, samples=4)) != same
    acting = [
        settings(
            HeldOutTask(
                other.settings,
                other.task,
                [replace(p, episode=EpisodeStart({"level": n}, {})) for p in other.prompts],
                other.answers,
            )
        )
        for n in (1, 1, 2)
    ]
    assert acting[0] == acting[1] != acting[2]

    before = model_fingerprint(str(model))
    (model / "notes.txt").write_text("not part of the model")
    assert model_fingerprint(str(model)) == before
    (model / "model.safetensors").write_bytes(bytes((3 << 20) - 1) + b"x")
    assert model_fingerprint(str(model)) != before


def test_a_hub_model_is_told_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit in ("1a2b", "3c4d"):
        monkeypatch.setattr(
            "opd_ray.evaluation.run.hf_hub_download",
            lambda name, file, commit=commit: f"/models--{name}/snapshots/{commit}/{file}",
        )
        assert model_fingerprint("some/hub-name") == f"some/hub-name@{commit}"


def test_the_protocol_of_a_task_is_met() -> None:
    assert get_task("test_records:_Task").name == "digit"


def test_figures_do_not_round_by_the_order_in_which_problems_were_answered() -> None:
    records = [
        record(f"{n:02}", [n % 7 > k for k in range(7)], ["1"] * 7, [1] * 7) for n in range(40)
    ]
    one = figures("t", 7, records)
    assert [figures("t", 7, Random(order).sample(records, 40)) for order in range(6)] == [one] * 6
