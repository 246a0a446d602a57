"""Runs parts: each a process with a time limit, of which nothing is left."""

from __future__ import annotations

import ctypes
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from gpu_check.findings import read_findings
from gpu_check.marked import marked
from gpu_check.part import Part, search_path

PASSED, FAILED, HUNG, SKIPPED, STOPPED = "passed", "FAILED", "HUNG", "not run", "stopped"
# In the environment of a part and of all that it starts, Ray's daemons among them.
MARK = "OPD_RAY_GPU_CHECK"
LAST_LINES = 25
_LEAVE_SECONDS = 5.0
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    part: str
    says: str  # what it shows
    state: str
    seconds: float = 0.0
    reason: str = ""  # in one line
    last_lines: tuple[str, ...] = ()  # of its output, where it did not pass
    findings: Mapping[str, list[Any]] = field(default_factory=dict)


def surroundings(part: Part, device: str, scratch: Path) -> dict[str, str]:
    """Variables for a part: no network, and no cache in a home that may not be writable."""
    caches = {
        "HF_HOME": "huggingface",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TORCH_EXTENSIONS_DIR": "extensions",
        "VLLM_CACHE_ROOT": "vllm",
        "VLLM_CONFIG_ROOT": "vllm_config",
        "MPLCONFIGDIR": "matplotlib",
        "CUDA_CACHE_PATH": "cuda",
        "HOME": "home",
    }
    for folder in caches.values():
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    # The machine is asked what it has; on a CPU no other part may find a GPU.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" and part.gpus else {}
    return (
        {name: str(scratch / folder) for name, folder in caches.items()}
        | hidden
        | {
            # Some images have float32 products rounded to TF32: limits here are for float32.
            "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
            "DS_ACCELERATOR": device,
            "PATH": search_path(),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            # Packages that a user has installed for himself are below the real home.
            "PYTHONUSERBASE": site.getuserbase(),
        }
    )


def run_part(part: Part, device: str, folder: Path, scratch: Path, seconds: float) -> Outcome:
    """Run it to its end, or to ``seconds``.

    Args:
        part: which.
        device: ``cuda`` or ``cpu``.
        folder: for its output, ``NAME.log``.
        scratch: for files that nobody needs afterwards.
        seconds: after which it is ended.

    Raises:
        KeyboardInterrupt: after it has been ended.
    """
    log, file, mark = folder / f"{part.name}.log", scratch / f"{part.name}.json", uuid4().hex
    command = [sys.executable, "-m", "gpu_check.child", part.module, part.argument, device]
    started = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **surroundings(part, device, scratch), MARK: mark},
            start_new_session=True,  # Ctrl-C is this process's alone
            preexec_fn=_end_with_parent,
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(child, mark)
    took = time.monotonic() - started
    lines = tuple(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    findings = read_findings(file)
    if code == 0:
        return Outcome(part.name, part.says, PASSED, took, findings=findings)
    if code is None:
        reason = f"did not end within {seconds:.0f} s"
        return Outcome(part.name, part.says, HUNG, took, reason, lines, findings)
    reason = lines[-1].strip() if lines else "it said nothing"
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}: {reason}"
    return Outcome(part.name, part.says, FAILED, took, reason, lines, findings)


def _end_with_parent() -> None:
    """In the child: SIGTERM when this process is killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(child: subprocess.Popen[bytes], mark: str) -> None:
    """End the process, and whatever it has started."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for process in marked(MARK, mark):
        try:
            os.kill(int(process.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
