"""Whether a model can be had by its name: one question, one clear answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from broken_models import demo_copy

from opd_ray.errors import InputError
from opd_ray.models.hub import HubError, check_reachable

# What the hub answers to a request for a file, by the name of the model.
ANSWERS = {
    "owner/there": (200, ""),
    "owner/gone": (401, "RepoNotFound"),
    "owner/gated": (403, "GatedRepo"),
    "owner/bare": (404, "EntryNotFound"),
    "owner/ill": (500, ""),
}


class _Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        model = "/".join(self.path.split("/")[1:3])
        self.asked.append(model)
        status, code = ANSWERS[model]
        self.send_response(status)
        self.send_header("Content-Length", "2")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub of its own with an empty cache; yields the models that it was asked for."""
    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _ask_at(monkeypatch, server.server_port)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()


def _ask_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    constants, hub = "huggingface_hub.constants", f"http://127.0.0.1:{port}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub)
    template = f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)


def cached(tmp_path: Path, name: str) -> Path:
    """The demo's teacher in the hub's cache."""
    repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return demo_copy(repository / "snapshots" / "abc")


def test_a_model_that_the_hub_has_passes_after_one_question(hub: list[str]) -> None:
    check_reachable("owner/there", weights=True)
    assert hub == ["owner/there"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owner/gone", ["shows no model of that name", "hf auth login"]),
        ("owner/gated", ["accepted its licence", "/owner/gated", "hf auth login"]),
        ("owner/bare", ["owner/bare has no config.json"]),
        ("owner/ill", ["cannot be asked", "500", "hf download owner/ill", "HF_HUB_CACHE"]),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_refused(
    hub: list[str], name: str, parts: list[str]
) -> None:
    with pytest.raises(HubError) as caught:
        check_reachable(name, weights=True)
    assert hub == [name]
    for part in (f"is no folder in {Path.cwd()}", "is not in the hub's cache here", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_refusal_is_quick(
    hub: list[str], monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:  # a port at which nobody listens
        _ask_at(monkeypatch, 1)
    begin = time.monotonic()
    with pytest.raises(HubError) as caught:
        check_reachable("Qwen/Qwen3-4B", weights=True)
    assert time.monotonic() - begin < 15  # transformers alone tries for 30 seconds
    assert hub == []
    assert "give a folder, or run `hf download Qwen/Qwen3-4B`" in str(caught.value)
    assert ("HF_HUB_OFFLINE forbids" if offline else "cannot be asked") in str(caught.value)


def test_what_is_whole_here_is_never_asked_for(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_reachable(str(tmp_path), weights=True)
    cached(tmp_path, "owner/gone")
    check_reachable("owner/gone", weights=True)
    assert hub == []


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ("model.safetensors", "has not all its weights in the hub's cache here"),
        ("tokenizer.json", "has no tokenizer in the hub's cache here"),
    ],
)
def test_what_is_in_the_cache_in_part_is_asked_for(
    hub: list[str], tmp_path: Path, lost: str, part: str
) -> None:
    (cached(tmp_path, "owner/gone") / lost).unlink()
    with pytest.raises(HubError, match=part):
        check_reachable("owner/gone", weights=True)
    assert hub == ["owner/gone"]


def test_weights_in_the_cluster_need_not_be_here(hub: list[str], tmp_path: Path) -> None:
    (cached(tmp_path, "owner/gone") / "model.safetensors").unlink()
    check_reachable("owner/gone", weights=False)
    assert hub == []


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "../gone", "a b"])
def test_a_path_is_no_name_of_the_hub(hub: list[str], name: str) -> None:
    with pytest.raises(InputError, match="no such folder, and no name of a hub model"):
        check_reachable(name, weights=True)
    assert hub == []
