"""Every kind of teacher on the same rollouts: the same scores, and the same weights after training.

The kinds are a Hugging Face model, a vLLM engine, vLLM's server behind its URL, a class, a named
Ray actor, a student's own frozen weights, an ensemble of one, and recorded answers.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from served import KEY, NAME, Served, serving
from test_teacher_hf import ragged, settings, turns
from test_teacher_vllm import TeacherHost, _HostManager
from tiny_models import make_tiny_qwen3
from trainer_ranks import shared_ranks
from transformers import AutoTokenizer

from actors.teacher.contract.answers import check_answers
from actors.teacher.http.probe import check_server
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import Teacher, TeacherError
from actors.teacher.registry import make_teacher
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import CacheMode, SignalChoice
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.schema import TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import ScoreRequest, Signal, TeacherAnswer, TeacherInfo, TrainItem

# The actor below is defined here, where Ray's workers cannot import it from.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

V = 96  # tokens, all real: a server's distribution has no way to leave padding out
CONTEXT = 255
TOLERANCE = 1e-4
REQUESTS = ragged(seed=11, count=12)
TURNS = [turns(r) for r in REQUESTS]
KINDS = ("vllm", "http", "class", "actor", "self", "ensemble", "replay")


class OwnTeacher(HfTeacher):
    """A teacher of the user's own; what it does is not the point here."""

    def __init__(self, path: str, knows_rows: bool = True) -> None:
        super().__init__(TeacherSettings(path=path, topk=8, batch_tokens=64), vocab_size=V)
        self._knows_rows = knows_rows

    def info(self) -> TeacherInfo:
        return replace(super().info(), answers_rows=self._knows_rows)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        assert self._knows_rows or all(r.rows is None for r in requests)
        return super().score(requests)


class Hosted:
    """A vLLM teacher in a process of its own, as a Teacher."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self.info, self.score = host.info, host.score

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), vocab=V, tied=False))


@pytest.fixture(scope="module")
def starting(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(folder, log, max_logprobs=V, context_length=CONTEXT + 1) as server:
        yield server


@pytest.fixture(scope="module")
def host(folder: str, starting: Served) -> Iterator[TeacherHost]:
    manager = _HostManager(ctx=get_context("spawn"))
    manager.start()
    try:
        made = manager.TeacherHost()
        made.start(settings(folder, kind="vllm", threads=1, kv_cache_bytes=1 << 18), V)
        yield made
    finally:
        manager.shutdown()


@pytest.fixture(scope="module")
def served(starting: Served, host: TeacherHost) -> Iterator[Served]:
    """The server, whose start went on beside the vLLM teacher's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", KEY)
        starting.wait()
        yield starting


@pytest.fixture(scope="module")
def cluster(served: Served) -> Iterator[dict[str, str]]:
    """A Ray whose processes know the server's key; its address and folder."""
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=1 << 27
    )
    yield context.address_info
    ray.shutdown()


def http(served: Served, **changes: Any) -> TeacherSettings:
    values = {"topk": 8, "named_tokens": V, "api_key_env": "TEACHER_KEY", **changes}
    return TeacherSettings(kind="http", url=served.url, **values)


@pytest.fixture(scope="module")
def make(
    folder: str,
    host: TeacherHost,
    served: Served,
    cluster: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Teacher]]:
    """A teacher of each kind."""
    actor = (
        ray.remote(OwnTeacher).options(name="own", namespace="opd-ray", num_cpus=0).remote(folder)
    )
    cache = settings(
        folder, cache=CacheMode.record, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    made = {
        "vllm": lambda: Hosted(host),
        "http": lambda: make_teacher(http(served), vocab_size=V),
        "class": lambda: make_teacher(
            TeacherSettings(
                kind="class",
                class_path=f"{__name__}:OwnTeacher",
                arguments={"path": folder, "knows_rows": False},
            )
        ),
        "actor": lambda: make_teacher(TeacherSettings(kind="actor", actor_name="own")),
        "self": lambda: make_teacher(settings(folder, kind="self"), vocab_size=V),
        "ensemble": lambda: make_teacher(
            settings(None, kind="ensemble"),
            vocab_size=V,
            members=[Member("only", 1.0, settings(folder))],
        ),
        "replay": lambda: make_teacher(
            replace(cache, cache=CacheMode.replay, path=f"/gone/{Path(folder).name}")
        ),
    }
    recorder = make_teacher(cache, vocab_size=V)
    recorder.score(REQUESTS)
    recorder.score(TURNS)
    recorder.close()
    yield lambda kind: made[kind]()
    ray.kill(actor)


@pytest.fixture(scope="module")
def judged(folder: str, make: Callable[[str], Teacher]) -> dict[str, tuple[Any, ...]]:
    """Scores and signals of all rollouts by every kind; then those of some rows of each."""
    found = {}
    for kind in ("hf", *KINDS):
        teacher = HfTeacher(settings(folder), vocab_size=V) if kind == "hf" else make(kind)
        chosen = settings(folder)
        server = TeacherServer(teacher, chosen)
        scores = server.score(REQUESTS)
        rows = {r.rollout_id: np.arange(len(r.response_ids)) for r in REQUESTS}
        whole = (scores, server.signals.take(rows))
        some = server.score(TURNS)
        found[kind] = (*whole, some, server.signals.take({r.rollout_id: r.asked for r in TURNS}))
        server.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scores(judged: Any, kind: str) -> None:
    for got, expected in zip(judged[kind][0], judged["hf"][0], strict=True):
        assert got.rollout_id == expected.rollout_id
        assert got.retries == expected.retries
        # Only teachers that hold the model know its entropy; one was asked for its own top-k.
        differing = got.columns.keys() ^ expected.columns.keys()
        assert differing <= {"teacher_entropy", "union_forward_kl"}
        for name in got.columns.keys() & expected.columns.keys():
            np.testing.assert_allclose(
                got.columns[name], expected.columns[name], atol=TOLERANCE, err_msg=name
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_signals(judged: Any, kind: str) -> None:
    for key, expected in judged["hf"][1].items():
        got = judged[kind][1][key]
        np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=TOLERANCE)
        clear = np.abs(np.diff(expected.logprobs, axis=1)).min(axis=1) > TOLERANCE
        np.testing.assert_array_equal(got.ids[clear], expected.ids[clear])


@pytest.mark.parametrize("kind", ["hf", *KINDS])
def test_the_same_rows_where_some_are_asked_about(judged: Any, kind: str) -> None:
    whole, whole_signals, some, some_signals = judged[kind]
    for r, every, few in zip(TURNS, whole, some, strict=True):
        assert every.columns.keys() == few.columns.keys()
        for name, values in few.columns.items():
            expected = every.columns[name][r.asked]
            np.testing.assert_allclose(values, expected, atol=TOLERANCE, err_msg=name)
        got, signal = some_signals[r.rollout_id], whole_signals[r.rollout_id]
        np.testing.assert_allclose(got.logprobs, signal.logprobs[r.asked], atol=TOLERANCE)


def test_the_same_trained_weights(judged: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two steps on all rows of the topk signal, from each kind in turn."""
    student = make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=V, seed=1)
    ranks = shared_ranks(2)
    items = [
        TrainItem(
            rollout_id=r.rollout_id,
            prompt_ids=r.prompt_ids,
            response_ids=r.response_ids,
            rows=np.arange(len(r.response_ids), dtype=np.int32),
            weights=np.ones(len(r.response_ids), np.float32),
            rollout_logprob=np.zeros(len(r.response_ids), np.float32),
        )
        for r in REQUESTS
    ]
    total = float(sum(len(item.rows) for item in items))

    def trained(signals: dict[str, Signal]) -> dict[str, np.ndarray]:
        # Where a gradient is nearly zero, Adam makes a step of its sign: so its epsilon is large.
        ranks.start(student, TrainerSettings(zero_stage=1, adam_eps=1e-3), vocab_size=V)
        for _ in range(2):
            plan = [([items[rank::2]], total, 1e-2, signals) for rank in range(2)]
            ranks.call_each("train_step", plan)
        return ranks.weights()

    by_kind = {"hf": trained(judged["hf"][1])}
    for kind in KINDS:
        same = all(
            np.array_equal(got.logprobs, expected.logprobs)
            and np.array_equal(got.ids, expected.ids)
            for got, expected in zip(
                judged[kind][1].values(), judged["hf"][1].values(), strict=True
            )
        )
        # To the bit: so is what the trainer makes of it. Of other engines it is seen in any case.
        if same and kind not in ("vllm", "http"):
            continue
        by_kind[kind] = trained(judged[kind][1])
    for kind, weights in by_kind.items():
        for name, expected in by_kind["hf"].items():
            np.testing.assert_allclose(
                weights[name], expected, atol=TOLERANCE, err_msg=f"{kind}: {name}"
            )


def test_a_real_server_keeps_the_contract(served: Served) -> None:
    for signal in (SignalChoice.topk, SignalChoice.sampled):
        chosen = http(served, signal=signal, named_tokens=16)
        teacher = make_teacher(chosen, vocab_size=V)
        assert contract_violations(teacher, chosen, V, context_length=CONTEXT, record_topk=8) == []
        teacher.close()


def test_few_named_tokens_give_lower_bounds(served: Served, judged: Any) -> None:
    chosen = http(served, named_tokens=8)
    server = TeacherServer(make_teacher(chosen, vocab_size=V), chosen)
    looser = 0.0
    for got, whole in zip(server.score(REQUESTS), judged["hf"][0], strict=True):
        for name in ("reverse_kl", "forward_kl", "jsd"):
            assert (got.columns[name] <= whole.columns[name] + TOLERANCE).all()
        looser = max(looser, float((whole.columns["reverse_kl"] - got.columns["reverse_kl"]).max()))
        np.testing.assert_allclose(
            got.columns["teacher_logprob"], whole.columns["teacher_logprob"], atol=TOLERANCE
        )
    assert looser > TOLERANCE
    server.close()


def test_a_real_server_is_probed(served: Served, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def probe(context_length: int = CONTEXT, **changes: Any) -> Any:
        return check_server(http(served, **changes), tokenizer, V, context_length=context_length)

    found = probe()
    assert (found.model, found.context_length) == (NAME, CONTEXT)
    for changes, said in (
        ({"model": "other"}, f"teacher.model = 'other', the server offers {NAME}"),
        ({"context_length": CONTEXT + 1}, "max_model_len"),
        ({"api_key_env": None}, "set teacher.api_key_env"),
    ):
        with pytest.raises(TeacherError, match=said):
            probe(**changes)
    with pytest.raises(TeacherError, match=f"token id {V}, the student's highest .*HTTP 400"):
        check_server(http(served), tokenizer, V + 1, context_length=CONTEXT)


def test_no_key_in_what_a_teacher_logs(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    teacher = make_teacher(http(served), vocab_size=V)
    answers = teacher.score(REQUESTS[:2])
    check_answers(teacher.info(), REQUESTS[:2], answers, TeacherSettings(topk=8))
    teacher.close()
    assert KEY not in caplog.text
    assert KEY not in served.log()


def test_a_run_with_a_server_trains_and_writes_its_key_nowhere(
    served: Served, cluster: dict[str, str], tmp_path: Path
) -> None:
    """Two steps as a user starts them; then all files of the run and of Ray are searched."""
    student, output = make_tiny_qwen3(tmp_path / "student", vocab=V, seed=1), tmp_path / "run"
    command = [sys.executable, "-m", "opd_ray", "train", "--config", "demo"]
    command += [f"run.output_dir={output}", "run.steps=2", f"student.path={student}"]
    command += ["teacher.kind=http", "teacher.path=null", f"teacher.url={served.url}"]
    command += ["teacher.api_key_env=TEACHER_KEY", "teacher.signal=topk", "teacher.topk=8"]
    command += ["rollout.prompts_per_step=8", "eval.every=0", "eval.tasks=[]", "eval.kl_prompts=0"]
    command += ["eval.teacher_accuracy=false", "run.export_at_end=false"]
    command += [f"cluster.address={cluster['gcs_address']}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in steps if "train/loss" in row]
    assert len(trained) == 2
    for row in trained:
        assert row["train/loss"] > 0
        assert row["teacher/tokens_per_second"] > 0
    folders = (output, Path(cluster["session_dir"]))
    searched = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    assert any(f.name == "config.yaml" for f in searched)
    assert any(f.name.startswith("worker-") for f in searched)
    for file in searched:
        assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.stdout + done.stderr
