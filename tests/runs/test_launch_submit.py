"""Submission: what travels, and real jobs on a real head node with a job server."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import SMALL
from local_head import Head, local_head
from omegaconf import OmegaConf

from opd_ray.cluster import submit as submit_module
from opd_ray.cluster.retries import Retries
from opd_ray.cluster.submit import JobLost, _stay, connect, run_job
from opd_ray.cluster.submit_files import JOB_CONFIG, stage
from opd_ray.config.load import load_config
from opd_ray.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
RULE = ROOT / "examples" / "custom_rule" / "surprise.py"

# Runs one job with an entrypoint of the test's own, as the command does with the real one.
DRIVER = """
import sys
from pathlib import Path
from opd_ray.cluster import submit as submit_module
from opd_ray.cluster.retries import Retries
from opd_ray.cluster.submit import JobLost, _stay, connect, run_job
raise SystemExit(run_job(connect(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
"""

# Joins the cluster at an address as a run does; prints its nodes, or why not.
JOIN = """
import sys
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import ClusterSettings
from opd_ray.errors import PlacementError
try:
    with RaySession(ClusterSettings(address=sys.argv[1])) as session:
        print(f"{len(session.cluster().nodes)} node with {session.cluster().cpus:g} CPUs")
except PlacementError as error:
    print(error)
"""


class Log:
    """Collects a process's output; ``wait_for`` returns when a text has been seen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._grown = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._grown:
                self._lines.append(line)
                self._grown.notify_all()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str) -> None:
        with self._grown:
            seen = self._grown.wait_for(lambda: text in self.text, timeout=400)
        assert seen, self.text


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with local_head() as started:
        yield started


def submit(head: Head, entrypoint: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, head.address, entrypoint, str(folder)],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(1200)
def test_log_and_exit_code_of_a_job_come_back(head: Head, tmp_path: Path) -> None:
    (tmp_path / "carried.txt").write_text("it travelled\n")
    job = submit(head, "cat carried.txt", tmp_path)
    text, _ = job.communicate(timeout=400)
    assert job.returncode == 0, text
    assert text.count("it travelled") == 1
    job = submit(head, "echo it fails; exit 3", tmp_path)
    text, _ = job.communicate(timeout=400)
    assert job.returncode == 3, text
    assert "it fails" in text


@pytest.mark.timeout(1200)
def test_ctrl_c_stops_the_job_and_lets_it_finish_what_it_must(head: Head, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import sys, time\n"
        "try:\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(5)  # longer than the 3 s after which Ray kills a job by default\n"
        "    print('saved', flush=True)\n"
    )
    job = submit(head, "exec python work.py", tmp_path)
    log = Log(job)
    try:
        log.wait_for("at work")
        job.send_signal(signal.SIGINT)
        log.wait_for("STOPPED")
        assert job.wait(timeout=180) == 130, log.text
    finally:
        job.kill()
    assert log.text.count("at work\n") == 1
    assert log.text.count("saved\n") == 1


@pytest.mark.timeout(1200)
def test_a_config_of_ones_own_is_trained_on_the_cluster(head: Head, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherit: demo\nrun: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text(
        f"inherit: base.yaml\nrun: {{steps: 1, output_dir: {tmp_path / 'run'}}}\n"
    )
    done = subprocess.run(
        [
            *("bash", ROOT / "launch" / "submit.sh", head.address, "mine.yaml", *SMALL),
            # A module of one's own, which the job finds, on the command line among the keys.
            *("run.seed=5", "--py-modules", RULE, "tip.rule=surprise:surprise"),
        ],
        env={**head.environment, "VIRTUAL_ENV": sys.prefix, "OPD_RAY_SETUP": "none"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    ran = load_config(str(tmp_path / "run" / "config.yaml"))
    assert (ran.run.steps, ran.run.seed, ran.tip.rule) == (1, 5, "surprise:surprise")
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def join(address: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    return done.stdout


def test_a_cluster_is_joined_by_its_address_with_the_token_that_is_there(head: Head) -> None:
    assert "RAY_AUTH_MODE" not in head.environment
    for address in (head.gcs_address, "auto"):
        variables = {**head.environment, "RAY_ADDRESS": head.gcs_address}
        assert join(address, variables) == "1 node with 2 CPUs\n"
    refused = join(head.gcs_address, {**head.environment, "RAY_AUTH_TOKEN": "f" * 64})
    assert "a Ray runs there and refuses this user: the token in RAY_AUTH_TOKEN is not" in refused


def test_what_travels(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherit: demo\nrun: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("inherit: base.yaml\nrun: {output_dir: /shared/run}\n")
    folder = tmp_path / "job"
    folder.mkdir()
    command = stage(folder, str(tmp_path / "mine.yaml"), ["run.seed=5"])
    assert command == ["train", "--config", JOB_CONFIG, "run.seed=5", "cluster.address=auto"]
    travelled = OmegaConf.to_container(OmegaConf.load(folder / JOB_CONFIG))
    assert isinstance(travelled, dict)
    assert travelled["run"]["steps"] == 7
    # Left for the cluster, where the package is in another place.
    assert travelled["student"]["path"] == "${opd:demo_pair}/student"
    config = load_config(str(folder / JOB_CONFIG))
    assert config == load_config(str(tmp_path / "mine.yaml"))
    assert {path.name for path in folder.iterdir()} == {"opd_ray", "actors", "configs", JOB_CONFIG}
    assert (folder / "configs" / "demo.yaml").is_file()
    assert not list(folder.rglob("__pycache__"))


def test_a_packaged_config_travels_by_name(tmp_path: Path) -> None:
    command = stage(tmp_path, "demo", ["run.output_dir=/shared/run"])
    assert command[:3] == ["train", "--config", "demo"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.output_dir=outputs/run"], "run.output_dir = 'outputs/run'"),
        (["run.output_dir=/shared/run", "run.stepz=3"], "run.stepz"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_sent(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(tmp_path, "demo", overrides)
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers() -> None:
    before = dict(os.environ)
    try:
        with pytest.raises(RunError, match="no Ray job server answers at http://127.0.0.1:9"):
            connect("127.0.0.1:9")
    finally:
        os.environ.clear()
        os.environ.update(before)


class Unsteady:
    """A job server that is not ready at once, and whose log connection breaks in the middle."""

    def __init__(self) -> None:
        self.refusals = 2
        self.opened = 0

    def submit_job(self, **_: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("status code 500: No available agent to submit job")

    async def tail_job_logs(self, _: str):  # type: ignore[no-untyped-def]
        self.opened += 1
        yield "first\n"
        if self.opened == 1:
            yield "seco"
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield "second\n"

    def get_job_status(self, _: str):  # type: ignore[no-untyped-def]
        from ray.job_submission import JobStatus

        return JobStatus.SUCCEEDED if self.opened > 1 else JobStatus.RUNNING

    def get_job_info(self, job: str):  # type: ignore[no-untyped-def]
        class Info:
            status = self.get_job_status(job)
            driver_exit_code = 0

        return Info


def test_a_broken_log_connection_is_taken_up_again_without_repeating(tmp_path: Path) -> None:
    client, out = Unsteady(), io.StringIO()
    assert run_job(client, "true", tmp_path, out) == 0
    assert out.getvalue() == "first\nsecond\n"
    assert client.refusals == 0


def test_a_job_that_the_cluster_refuses_is_an_error(tmp_path: Path) -> None:
    class Refusing(Unsteady):
        def submit_job(self, **_: object) -> None:
            raise RuntimeError("status code 500: runtime_env is not allowed")

    with pytest.raises(RunError, match="runtime_env is not allowed"):
        run_job(Refusing(), "true", tmp_path)


class Losing(Unsteady):
    """A cluster that takes every job and, of the first ``lost`` of them, loses the node."""

    def __init__(self, lost: int, how: str) -> None:
        super().__init__()
        self.lost, self.how, self.entrypoints = lost, how, list[str]()

    def submit_job(self, *, entrypoint: str, **_: object) -> None:
        self.entrypoints.append(entrypoint)
        self.opened = 1  # its log does not break

    @property
    def _is_lost(self) -> bool:
        return len(self.entrypoints) <= self.lost

    def get_job_status(self, job: str):  # type: ignore[no-untyped-def]
        if self._is_lost and self.how == "forgotten":
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")
        if self._is_lost and self.how == "silent":
            raise ConnectionError("refused")
        return super().get_job_status(job)

    def get_job_info(self, job: str):  # type: ignore[no-untyped-def]
        lost = self._is_lost

        class Info:
            status = "FAILED" if lost else "SUCCEEDED"
            driver_exit_code = None if lost else 0
            error_type = self.how
            message = "Job supervisor actor died"

        return Info


@pytest.mark.parametrize("how", ["JOB_SUPERVISOR_ACTOR_DIED", "forgotten"])
def test_a_lost_job_is_submitted_again(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Losing(2, how)
    assert _stay(client, "true", tmp_path, Retries(2, first_pause=0.01)) == 0
    assert client.entrypoints == ["true"] * 3
    said = capsys.readouterr().err
    assert said.count("it is submitted again in 0.01 s") == 1
    assert said.count("it is submitted again in 0.02 s") == 1
    client = Losing(3, how)
    with pytest.raises(JobLost):
        _stay(client, "true", tmp_path, Retries(2, first_pause=0.01))
    assert client.entrypoints == ["true"] * 3
    with pytest.raises(JobLost):
        run_job(Losing(1, how), "true", tmp_path, io.StringIO())


def test_a_job_that_could_not_start_is_not_submitted_again(tmp_path: Path) -> None:
    client = Losing(1, "RUNTIME_ENV_SETUP_FAILURE")
    assert _stay(client, "true", tmp_path, Retries(2)) == 1
    assert client.entrypoints == ["true"]


def test_a_server_that_answers_no_more_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_module, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(submit_module, "POLL_SECONDS", 0.01)
    client = Losing(9, "silent")
    with pytest.raises(RunError, match=r"has not answered for 0 s \(refused\); opd-ray-"):
        _stay(client, "true", tmp_path, Retries(2))
    assert client.entrypoints == ["true"]  # it may be at work all the same


def test_a_log_that_says_nothing_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Unsteady):
        async def tail_job_logs(self, _: str):  # type: ignore[no-untyped-def]
            self.opened += 1
            yield "first\n"
            if self.opened == 1:
                await asyncio.sleep(60)
            yield "second\n"

    monkeypatch.setattr(submit_module, "SILENT_SECONDS", 0.05)
    out = io.StringIO()
    assert run_job(Silent(), "true", tmp_path, out) == 0
    assert out.getvalue() == "first\nsecond\n"


def test_retries_travel_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Losing(0, "")
    monkeypatch.setattr(submit_module, "connect", lambda address: client)
    arguments = ["--retries", "4", "h:1", "demo", f"run.output_dir={tmp_path}"]
    assert submit_module.main(arguments) == 0
    assert client.entrypoints == [
        f"exec python -m opd_ray train --retries 4 --config demo run.output_dir={tmp_path} "
        "cluster.address=auto"
    ]
