"""Joining a Ray that runs, and starting one: every refusal names the place and the remedy."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services
from ray.exceptions import AuthenticationError

from opd_ray.cluster import local_ray, session
from opd_ray.cluster.local_ray import local_ray_notes, local_ray_problems, token_for_this_run
from opd_ray.cluster.ray_address import token_source
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import ClusterSettings
from opd_ray.errors import PlacementError, RunError, exit_code

# What Ray 2.60 raises at a head node of another version.
VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""
REFUSED = "RPC error: InvalidAuthToken: Authentication token is missing or incorrect"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a token, and an environment without variables of Ray's."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


class StandIn:
    """Ray as far as a session calls it."""

    def __init__(self, raised: BaseException | None = None) -> None:
        self.raised = raised
        self.options: dict[str, Any] = {}
        self.seen: dict[str, str] = {}
        self.ended = 0

    def init(self, **options: Any) -> None:
        self.options, self.seen = options, dict(os.environ)
        if self.raised is not None:
            raise self.raised

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def in_place_of_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(raised: BaseException | None = None) -> StandIn:
        stand_in = StandIn(raised)
        monkeypatch.setattr(ray, "init", stand_in.init)
        monkeypatch.setattr(ray, "shutdown", stand_in.shutdown)
        monkeypatch.setattr(session, "_guard", lambda died, started_here: nullcontext())
        return stand_in

    return put


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(address: str | None, **settings: Any) -> str:
    session = RaySession(ClusterSettings(address=address, **settings))
    with pytest.raises(PlacementError) as raised, session:
        raise AssertionError("it was taken")
    return str(raised.value)


def unauthenticated() -> ConnectionError:
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError(f"Failed to connect to GCS. Last connection error: {REFUSED}")
    error.__cause__.args = (f"Failed to connect to GCS: Unauthenticated: {REFUSED}",)
    return error


def test_an_address_is_joined_with_the_token_that_is_there(
    home: Path, listening: str, in_place_of_ray: Any
) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    stand_in = in_place_of_ray()
    with RaySession(ClusterSettings(address=listening)):
        assert stand_in.options["address"] == listening
        assert stand_in.seen["RAY_AUTH_MODE"] == "token"
        assert stand_in.ended == 0
    assert stand_in.ended == 1
    assert "RAY_gcs_server_port_wait_time_s" not in os.environ


def test_a_user_without_a_token_or_with_a_mode_of_his_own_shows_none(
    home: Path, listening: str, in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = in_place_of_ray()
    with RaySession(ClusterSettings(address=listening)):
        assert "RAY_AUTH_MODE" not in stand_in.seen
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with RaySession(ClusterSettings(address=listening)):
        assert stand_in.seen["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (unauthenticated(), ["refuses this user: there is no token here", "RAY_AUTH_TOKEN_PATH"]),
        (AuthenticationError("no token was found"), ["refuses this user", "copy the head node's"]),
        (
            RuntimeError(VERSIONS),
            [
                "another version runs there (Ray: 2.59.0, Python: 3.12.1; here: Ray: 2.60.0, "
                "Python: 3.11.7)"
            ],
        ),
    ],
)
def test_a_refused_token_and_another_version_are_told_apart(
    raised: Exception, words: list[str], listening: str, in_place_of_ray: Any
) -> None:
    stand_in = in_place_of_ray(raised)
    message = refusal(listening)
    assert message.startswith(f"cluster.address = '{listening}': ")
    assert all(word in message for word in words), message
    assert stand_in.ended == 1  # what was begun is put away


def test_a_ray_that_does_not_answer_is_no_bad_input(listening: str, in_place_of_ray: Any) -> None:
    stand_in = in_place_of_ray(ConnectionError("Timed out"))
    with pytest.raises(RunError) as raised:
        RaySession(ClusterSettings(address=listening)).__enter__()
    assert exit_code(raised.value) == 1
    assert str(raised.value).startswith(
        f"cluster.address = '{listening}': somebody listens there, and no Ray answers "
        "(ConnectionError: Timed out): a head node (by default port 6379) that is busy or not"
    )
    assert stand_in.ended == 1
    in_place_of_ray(ConnectionError("Could not find any running Ray instance"))
    assert "no Ray answers there (ConnectionError: Could not find" in refusal("auto")


def test_a_wrong_token_is_named_by_where_it_lies(
    home: Path, listening: str, in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_ray(unauthenticated())
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/some/token")
    assert "the token in RAY_AUTH_TOKEN_PATH = /some/token is not its own" in refusal(listening)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a")
    assert "the token in RAY_AUTH_TOKEN is not its own" in refusal(listening)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", ["does not carry", "HOST:PORT", "launch/submit.sh"]),
        ("http://10.0.0.1:8265", ["job server", "launch/submit.sh http://10.0.0.1:8265 CONFIG"]),
        ("10.0.0.1", ["is no address: write HOST:PORT"]),
        ("10.0.0.1:http", ["is no address"]),
        (":6379", ["is no address"]),
        ("10.0.0.1:99999", ["is no address"]),
    ],
)
def test_what_is_no_address_of_a_head_node_says_what_to_write(
    address: str, words: list[str], in_place_of_ray: Any
) -> None:
    stand_in = in_place_of_ray()
    message = refusal(address)
    assert f"cluster.address = {address!r}" in message
    assert all(word in message for word in words), message
    assert stand_in.options == {}


def test_auto_takes_the_address_in_the_environment_and_names_it(
    listening: str, in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = in_place_of_ray()
    monkeypatch.setenv("RAY_ADDRESS", listening)
    with RaySession(ClusterSettings(address="auto")):
        assert stand_in.options["address"] == listening
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    message = refusal("auto")
    assert message.startswith("cluster.address (from RAY_ADDRESS) = 'ray://10.0.0.1:10001'")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"cluster.address = '127.0.0.1:{port}': no Ray answers" in refusal(f"127.0.0.1:{port}")


def test_a_ray_that_is_started_here_takes_the_loopback_address(in_place_of_ray: Any) -> None:
    in_place_of_ray()
    found: list[str] = []

    def init(**options: Any) -> None:
        # As Ray makes of its argument; it would take this machine's own address otherwise.
        found.append(services.resolve_ip_for_localhost(options["_node_ip_address"]))
        assert options["_system_config"] == {"prestart_worker_first_driver": False}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", init)
        with RaySession(ClusterSettings()):
            pass
    assert found == ["127.0.0.1"]
    assert ray_constants.ENABLE_RAY_CLUSTER  # for one that is joined


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("Failed to start the GCS.\nTraceback"),
        OSError(28, "No space left on device"),
        Exception("Node died"),
        ConnectionError("closed"),
    ],
)
def test_what_befalls_ray_at_its_start_is_no_bad_input(
    raised: Exception, in_place_of_ray: Any
) -> None:
    stand_in = in_place_of_ray(raised)
    with pytest.raises(RunError, match=r"Ray did not come up here: .*; give the same") as found:
        RaySession(ClusterSettings()).__enter__()
    assert exit_code(found.value) == 1
    assert str(raised).split("\n")[0].rstrip(".") in str(found.value)
    assert "Traceback" not in str(found.value)
    assert stand_in.ended == 1
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_what_ray_raises_of_its_values_is_one_message(in_place_of_ray: Any) -> None:
    stand_in = in_place_of_ray(ModuleNotFoundError("No module named 'no'"))
    message = refusal(None)
    assert message.startswith(
        "Ray cannot be started here: ModuleNotFoundError: No module named 'no'; "
    )
    assert "RAY_ variables" in message
    assert stand_in.ended == 1


@pytest.mark.parametrize("slow", [1, 2])
def test_a_ray_that_is_slow_to_start_is_tried_again_and_is_no_bad_input(
    in_place_of_ray: Any, slow: int
) -> None:
    in_place_of_ray()
    tries: list[int] = []

    def init(**options: Any) -> None:
        tries.append(1)
        if len(tries) <= slow:
            raise Exception("The current node timed out during startup. This could happen because")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", init)
        if slow == 1:
            with RaySession(ClusterSettings()):
                pass
        else:
            with pytest.raises(RunError, match="give the same command again") as raised:
                RaySession(ClusterSettings()).__enter__()
            assert exit_code(raised.value) == 1
    assert len(tries) == 2


def test_a_home_that_cannot_be_written_gets_a_token_for_the_run(
    in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    stand_in = in_place_of_ray()
    with RaySession(ClusterSettings()):
        assert len(stand_in.seen["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_home_that_can_be_written_or_has_a_token_gets_none(home: Path) -> None:
    with token_for_this_run():
        assert token_source() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    with token_for_this_run():
        assert token_source() == str(home / ".ray" / "auth_token")
        assert "RAY_AUTH_TOKEN" not in os.environ


def test_folders_in_which_ray_cannot_work(
    tmp_path: Path, in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(local_ray_problems(ClusterSettings())) == []
    monkeypatch.setenv("TMPDIR", "/dev/null/tmp")
    stand_in = in_place_of_ray()
    message = refusal(None)
    assert message.startswith("TMPDIR = '/dev/null/tmp': ")
    assert "cannot be written to; set RAY_TMPDIR" in message
    assert stand_in.options == {}
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # goes before TMPDIR
    assert "TMPDIR = '/dev/null" not in "".join(local_ray_problems(ClusterSettings()))


@pytest.mark.parametrize(("length", "over"), [(36, 0), (37, 1), (60, 24)])
def test_the_longest_folder_is_that_of_the_longest_socket(
    length: int, over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # /ray/session_2026-11-28_18-58-52_950801_1234567/sockets/plasma_store has 68 bytes.
    monkeypatch.setattr(os, "getpid", lambda: 1234567)
    monkeypatch.setattr(local_ray, "writable", lambda folder: True)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "é" + "t" * length)
    found = list(local_ray_problems(ClusterSettings()))
    assert ("too long by" in "".join(found)) == (over > 0)
    if over:
        assert f"too long by {over} bytes" in found[0]


@pytest.mark.parametrize(("hard", "refused"), [(255, True), (256, False), (-1, False)])
def test_a_limit_on_open_files_that_no_ray_can_work_with(
    monkeypatch: pytest.MonkeyPatch, hard: int, refused: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, hard))  # -1: there is none
    problems = list(local_ray_problems(ClusterSettings()))
    assert len(problems) == refused
    if refused:
        assert problems[0].startswith("ulimit -Hn is 255: each of Ray's processes needs up to 256")
        assert "--ulimit nofile=65536" in problems[0]


def test_little_shared_memory_is_noted_where_ray_starts_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stat = os.statvfs_result((1, 1, 100, 100, 67_108_864, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: stat)
    (note,) = local_ray_notes(ClusterSettings())
    assert note.startswith("/dev/shm has 67.11 MB free: Ray keeps what actors hand each other in f")
    assert list(local_ray_notes(ClusterSettings(address="auto"))) == []
    stat = os.statvfs_result((1, 1, 100, 100, 2 << 30, 0, 0, 0, 0, 255))
    assert list(local_ray_notes(ClusterSettings())) == []


def test_an_object_store_that_no_memory_holds() -> None:
    found = list(local_ray_problems(ClusterSettings(object_store_bytes=10**15)))
    assert len(found) == 1
    assert found[0].startswith("cluster.object_store_bytes = 1000000000000000: this machine's mem")
    assert list(local_ray_problems(ClusterSettings(object_store_bytes=10**8))) == []


def test_an_object_store_above_shared_memory_and_ten_gigabytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_ray, "total_memory", lambda: 10**12)
    stat = os.statvfs_result((1, 1, 100, 100, 2 * 10**9, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: stat)
    settings = ClusterSettings(object_store_bytes=11 * 10**9)
    assert "/dev/shm has 2.00 GB free" in next(local_ray_problems(settings))
    assert list(local_ray_problems(ClusterSettings(object_store_bytes=10**10))) == []
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    assert list(local_ray_problems(settings)) == []


class Connected:
    """A process that is connected to a Ray at 10.0.0.1:6379 when the session begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, client: bool = False) -> None:
        context = SimpleNamespace(gcs_address="10.0.0.1:6379")
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: client)


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379"])
def test_a_ray_that_this_process_is_connected_to_is_used_and_stays(
    address: str | None, in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Connected(monkeypatch)
    stand_in = in_place_of_ray()
    guarded: list[bool] = []

    def guard(died: object, started_here: bool) -> Any:
        guarded.append(started_here)
        return nullcontext()

    monkeypatch.setattr(session, "_guard", guard)
    with RaySession(ClusterSettings(address=address)):
        pass
    assert stand_in.options == {}  # not begun
    assert stand_in.ended == 0
    assert guarded == [False]


def test_another_ray_than_the_connected_one_is_refused(
    in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Connected(monkeypatch)
    stand_in = in_place_of_ray()
    message = refusal("10.0.0.2:6379")
    assert "cluster.address = '10.0.0.2:6379', but this process is connected to" in message
    assert "10.0.0.1:6379, which is used; leave the key out, or call ray.shutdown()" in message
    assert stand_in.ended == 0


def test_rays_client_is_refused(in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Connected(monkeypatch, client=True)
    stand_in = in_place_of_ray()
    assert "connected through Ray's client (ray://)" in refusal(None)
    assert stand_in.ended == 0


@pytest.mark.parametrize("ends_program", [True, False])
def test_a_ray_that_dies_ends_the_program_or_is_told(
    in_place_of_ray: Any, monkeypatch: pytest.MonkeyPatch, ends_program: bool
) -> None:
    in_place_of_ray()
    deaths: list[Any] = []
    ended: list[str] = []
    told: list[Exception] = []

    def guard(died: Any, started_here: bool) -> Any:
        deaths.append(died)
        return nullcontext()

    monkeypatch.setattr(session, "_guard", guard)
    monkeypatch.setattr(session, "end_program", ended.append)
    with RaySession(ClusterSettings(), ends_program=ends_program) as ray_session:
        if not ends_program:
            ray_session.when_dead(told.append)
        deaths[0]("Ray is gone")
    assert ended == (["Ray is gone"] if ends_program else [])
    assert [(type(error), str(error)) for error in told] == (
        [] if ends_program else [(RunError, "Ray is gone")]
    )


def test_sigterm_does_what_it_did_before_ray_began(in_place_of_ray: Any) -> None:
    in_place_of_ray()
    before = signal.getsignal(signal.SIGTERM)

    def init(**options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", init)
        with RaySession(ClusterSettings()):
            assert signal.getsignal(signal.SIGTERM) is before
