"""A teacher served to two clients at once, as a user does it: started, asked, killed, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
from launching import SMALL, rows

from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import TeacherError
from actors.teacher.registry import make_teacher
from opd_ray import serve_teacher
from opd_ray.cli import main
from opd_ray.cluster.nodes import from_ray_nodes
from opd_ray.config.choices import SignalChoice
from opd_ray.config.load import load_config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.serve_teacher import Serving
from opd_ray.types import SampledSignal, ScoreRequest, TeacherAnswer, TopK, TopKSignal

TEACHER = pair_folder() / "teacher"


# This process is in the cluster, too.
pytestmark = pytest.mark.usefixtures("joined_ray")


@pytest.fixture
def environment(ray_address: str) -> Iterator[dict[str, str]]:
    """The environment of a command that joins the cluster of the test."""
    yield {**os.environ, "RAY_ADDRESS": ray_address}
    with suppress(ValueError):  # no test left one behind
        ray.kill(ray.get_actor("judge", namespace="opd-ray"))


def arguments(*own: str) -> list[str]:
    return ["serve-teacher", "--config", "demo", "--name", "judge", *own, "cluster.address=auto"]


def command(*own: str) -> list[str]:
    """In a process of its own; where that matters not, ``main`` saves the imports."""
    return [sys.executable, "-m", "opd_ray", *arguments(*own)]


def requests(count: int, seed: int) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, response = (rng.integers(3, 20, n).astype(np.int32) for n in (6, 11))
        topk = TopK(np.tile(np.arange(4, 8, dtype=np.int32), (11, 1)), np.zeros((11, 4)))
        made.append(ScoreRequest(f"r{number}", prompt, response, topk))
    return made


def eventually(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def hosts() -> list[int]:
    """The processes of the replicas below this test's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::TeacherHost"):
            found.append(process.pid)
    return found


def is_gone(name: str = "judge") -> bool:
    try:
        ray.get_actor(name, namespace="opd-ray")
    except ValueError:
        return True
    return False


def assert_same(answers: list[TeacherAnswer], expected: list[TeacherAnswer]) -> None:
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(one.at_student_topk, other.at_student_topk, atol=1e-5)
        np.testing.assert_allclose(one.signal.logprobs, other.signal.logprobs, atol=1e-5)
        assert type(one.signal) is type(other.signal)


def test_two_clients_with_wishes_of_their_own(
    environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        serving = subprocess.Popen(
            command("--replicas", "2", "--every", "0.2", "teacher.max_restarts=1"),
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: "2 replicas" in log.read_text() or serving.poll() is not None, 250)
        assert serving.poll() is None, log.read_text()
        topk, sampled = (
            TeacherSettings(kind="actor", actor_name="judge", signal=signal, topk=k)
            for signal, k in ((SignalChoice.topk, 5), (SignalChoice.sampled, 1))
        )
        clients = [make_teacher(topk, own_topk=3), make_teacher(sampled)]
        assert [c.info().signals for c in clients] == [("topk",), ("sampled",)]
        asked = [requests(40, seed) for seed in (1, 2)]
        alone = HfTeacher(TeacherSettings(path=str(TEACHER), topk=5), own_topk=3)
        expected = [alone.score(requests) for requests in asked]
        with ThreadPoolExecutor() as threads:
            both = [threads.submit(c.score, r) for c, r in zip(clients, asked, strict=True)]
            answers = [future.result() for future in both]
        assert_same(answers[0], expected[0])
        assert all(
            isinstance(a.signal, TopKSignal) and a.topk.ids.shape[1] == 3 for a in answers[0]
        )
        for answer, true in zip(answers[1], expected[1], strict=True):
            assert isinstance(answer.signal, SampledSignal)
            np.testing.assert_allclose(answer.signal.logprobs, true.logprob, atol=1e-5)

        # A dead replica is started again by Ray, and nobody notices.
        before = hosts()
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert_same(clients[0].score(asked[0]), expected[0])
        eventually(lambda: "(120 in all)" in log.read_text())

        assert main(arguments()) == 2
        assert "an actor of that name runs" in capsys.readouterr().err
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0, log.read_text()
        assert "judge stopped" in log.read_text()
        eventually(is_gone)
        eventually(lambda: not hosts())
        with pytest.raises(TeacherError, match="'judge'"):
            clients[0].score(asked[0])
    finally:
        if serving.poll() is None:
            serving.kill()


def test_replicas_without_a_place_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has joined the cluster; there is no GPU in it."""
    joined = nullcontext(SimpleNamespace(cluster=lambda: from_ray_nodes(ray.nodes())))
    monkeypatch.setattr(serve_teacher, "RaySession", lambda settings: joined)
    config = load_config(
        "demo",
        [
            "cluster.address=auto",
            "cluster.start_timeout_s=1",
            f"teachers={{large: {{path: {TEACHER}, gpus_per_replica: 1}}}}",
        ],
    )
    starved = Serving("starved", "opd-ray", teacher="large", replicas=2)
    said = "starved: not ready after 1 s: .* no room for 2 replicas with 0 CPUs and 1 GPUs each"
    with pytest.raises(TeacherError, match=said):
        serve_teacher.serve_teacher(config, starved)
    eventually(lambda: is_gone("starved"))
    with pytest.raises(ConfigError, match="--teacher small: no such teacher; there is teacher, la"):
        serve_teacher.serve_teacher(config, replace(starved, teacher="small"))


def test_detached_it_serves_a_run_and_goes_on_until_it_is_stopped(
    environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = subprocess.run(command("--detach"), env=environment, capture_output=True, text=True)
    assert start.returncode == 0, start.stderr
    run = ["train", "--config", "demo", *SMALL, "run.steps=1", f"run.output_dir={tmp_path}"]
    run += ["teacher.kind=actor", "teacher.path=null", "teacher.actor_name=judge"]
    assert main([*run, "cluster.address=auto"]) == 0
    [row] = rows(tmp_path)
    assert row["train/loss"] > 0
    stats = ray.get(ray.get_actor("judge", namespace="opd-ray").stats.remote())
    assert stats.rollouts == 16  # every one of the run's, and none twice
    capsys.readouterr()
    assert main(arguments("--stop")) == 0
    assert capsys.readouterr().out == "judge stopped\n"
    eventually(is_gone)
    eventually(lambda: not hosts())
