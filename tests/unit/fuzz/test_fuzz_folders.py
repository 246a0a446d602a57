"""Whatever the files of a run, an evaluation, a study or a cache hold: they are read, or named."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import JSON, damaged, examples, only_ours
from hypothesis import example, given
from hypothesis import strategies as st

from actors.teacher.cache.files import AnswerFiles
from actors.teacher.cache.identity import read_identity
from opd_ray.config.load import load_config, to_values
from opd_ray.config.teacher import TeacherSettings
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.evaluation.folder import EvaluationFolder, ProblemRecord
from opd_ray.evaluation.results import read_results, render
from opd_ray.output.checkpoint import CheckpointStore, RunState
from opd_ray.output.folder import OutputFolder
from opd_ray.output.history import History
from opd_ray.output.resume import find_start
from opd_ray.output.sinks import JsonlSink, read_jsonl
from opd_ray.study.cells import study_cells
from opd_ray.study.results import StudyFolder
from opd_ray.tip import TipFilter
from opd_ray.types import SampledSignal, TeacherAnswer

DEMO = load_config("demo")
DEMO_RESUMED = load_config("demo", ["run.resume=auto"])


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def garbled(*values: Any) -> st.SearchStrategy[bytes]:
    """Lines of JSON of which one is damaged, or that are cut, or hold what is no JSON."""
    whole = lines(*values)
    parts = st.tuples(st.integers(0, len(whole)), st.binary(max_size=4), st.integers(0, len(whole)))
    return st.one_of(
        damaged(list(values)).map(lambda rows: lines(*rows) if isinstance(rows, list) else b"{}\n"),
        parts.map(lambda part: whole[: part[0]] + part[1] + whole[part[2] :]),
    )


PART = {
    "from_step": 0,
    "started": "2026-01-01 00:00:00",
    "prompts": asdict(PromptsIdentity(8, "f")),
    "changed": [],
    "config": {},
}


@examples(40)
@given(garbled(PART, {"finished": 3}))
def test_any_history(tmp_path: Path, content: bytes) -> None:
    history = History(tmp_path / "history.jsonl")
    history.path.write_bytes(content)
    with only_ours(history.path.name):
        _ = history.finished, history.prompts
        history.finish(4)
        assert history.finished == 4


@examples(40)
@given(garbled({"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}))
def test_any_metrics(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with only_ours(path.name):
        sink = JsonlSink(path, 1)
        sink.write(2, {"a": 1.0})
        sink.close()
        read_jsonl(path)


STATE = asdict(
    RunState(
        step=3,
        seed=0,
        total_steps=120,
        filter_state=TipFilter(DEMO.tip).state_dict(),
        batches=[[3, 128]],
        prompts=asdict(PromptsIdentity(8, "f")),
    )
)


@examples(40)
@given(
    st.sampled_from(["run.json", "manifest.json"]).flatmap(
        lambda name: st.tuples(st.just(name), garbled(STATE) | JSON.map(lambda v: lines(v)))
    )
)
def test_any_run_state_of_a_checkpoint(tmp_path: Path, drawn: tuple[str, bytes]) -> None:
    name, content = drawn
    store = CheckpointStore(tmp_path / "checkpoints", 2, config_yaml="run: {seed: 0}\n")
    folder = store.save(
        RunState(**STATE), lambda trainer: Path(trainer, "rank_0.bin").write_bytes(b"1")
    )
    (folder / name).write_bytes(content)
    if name == "run.json":  # written so, and not only damaged: its size is as the manifest says
        sizes = json.loads((folder / "manifest.json").read_text())
        if isinstance(sizes.get("run.json"), int):
            sizes["run.json"] = len(content)
            (folder / "manifest.json").write_text(json.dumps(sizes))
    with only_ours(str(tmp_path)):
        if start := find_start(DEMO_RESUMED, store):
            start.batches()
            _ = start.prompts
            TipFilter(DEMO.tip).load_state_dict(start.state.filter_state)


VALUES = to_values(DEMO)
VALUES["run"]["resume"] = "auto"


@examples(20)
@given(damaged(VALUES) | JSON)
def test_any_config_of_a_run_that_goes_on(tmp_path: Path, values: Any) -> None:
    folder = OutputFolder(tmp_path)
    folder.config.write_text(json.dumps(values))
    folder.metrics.write_text('{"step": 1}\n')
    with only_ours(str(tmp_path)):
        folder.accept(DEMO_RESUMED, None)


RECORD = asdict(
    ProblemRecord("p", "1", ["1", "2"], ["1", None], [True, False], [3, 4], ["stop"] * 2)
)
SETTINGS = {
    "model": "m",
    "tasks": {
        "t": {
            "task": "math",
            "problems": 1,
            "sampled": {"samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9},
        }
    },
}


@examples(30)
@given(
    st.tuples(damaged(SETTINGS) | JSON, st.just(lines(RECORD)))
    | st.tuples(st.just(SETTINGS), garbled(RECORD))
)
def test_any_folder_of_an_evaluation(tmp_path: Path, drawn: tuple[Any, bytes]) -> None:
    settings, records = drawn
    folder = EvaluationFolder(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "t").mkdir(exist_ok=True)
    (tmp_path / "t" / "sampled.jsonl").write_bytes(records)
    with only_ours(str(tmp_path)):
        render(read_results(folder), "m")
        folder.begin(SETTINGS)


STUDY = load_config("study", ["run.steps=1"])
CELL = study_cells(STUDY)[0]
RESULT = {
    "arm": CELL.arm,
    "seed": CELL.seed,
    "tip": to_values(CELL.config)["tip"],
    "step_0": {"eval/kl": 1.0},
    "final": {"eval/kl": 0.5},
    "tokens_written": 1,
    "tokens_trained": 1,
    "step_seconds": 1.0,
    "seconds": 2.0,
    "overlaps": {},
    "run": {"overlap": False, "lag": 0},
}


@examples(30)
@given(damaged(RESULT) | JSON)
@example({**RESULT, "run": None})
def test_any_result_of_a_cell(tmp_path: Path, result: Any) -> None:
    folder = StudyFolder(tmp_path)
    path = folder.cell(CELL.arm, CELL.seed) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    with only_ours(path.name):
        folder.result(CELL)


TEACHER = TeacherSettings(kind="hf", path="/gone", cache="replay", cache_dir="c")
IDENTITY = {
    "kind": "hf",
    "dtype": "float32",
    "weights": None,
    "reads_student_logprobs": False,
    "name": "gone",
    "vocab_size": 24,
    "context_length": 8,
    "hidden_size": None,
    "tokenizer_hash": None,
}


@examples(30)
@given(damaged(IDENTITY).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9))
def test_any_identity_of_a_cache(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "teacher.json").write_bytes(content)
    with only_ours("cache_dir"):
        read_identity(tmp_path, TEACHER, {"kind": "hf"})


def answer_file(folder: Path) -> bytes:
    files = AnswerFiles(folder)
    signal = SampledSignal(np.zeros(2, np.float32))
    answer = TeacherAnswer("r", np.zeros(2, np.float32), np.zeros((2, 3), np.float32), signal)
    files.write({"k": answer})
    (path,) = folder.glob("answers-*")
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole_answers(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return answer_file(tmp_path_factory.mktemp("answers"))


@examples(40)
@given(data=st.data())
def test_any_damage_to_recorded_answers(
    tmp_path: Path, whole_answers: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(whole_answers)))
    piece = data.draw(st.binary(max_size=8))
    end = data.draw(st.sampled_from([start, start + len(piece), len(whole_answers)]))
    path = tmp_path / "answers-a.safetensors"
    path.write_bytes(whole_answers[:start] + piece + whole_answers[end:])
    with only_ours(path.name):
        AnswerFiles(tmp_path).read(["k"])
