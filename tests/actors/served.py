"""vLLM's OpenAI-compatible server with a model of a test, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.process import vllm_environment

KEY = "sk-of-the-test"
NAME = "served-teacher"


class Served:
    """The process and where it will listen; its start takes about 15 s of a free machine."""

    def __init__(self, folder: str, log: Path, *, max_logprobs: int, context_length: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self._log = log
        # What "vllm serve" runs; the CPU package's own command cannot find its version.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += f"--model {folder} --served-model-name {NAME} --host 127.0.0.1".split()
        command += f"--port {port} --dtype float32 --enforce-eager --block-size 32".split()
        command += f"--max-model-len {context_length} --max-logprobs {max_logprobs}".split()
        command += ["--kv-cache-memory-bytes", "1048576", "--max-num-batched-tokens", "256"]
        command += ["--max-num-seqs", "16", "--distributed-executor-backend", "uni"]
        environment = {**os.environ, **vllm_environment(1), "VLLM_API_KEY": KEY}
        # vLLM counts ranks with a function that torch compiles, long at the first time.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self, seconds: float = 400) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5)
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(self._log.read_text()[-3000:])

    def log(self) -> str:
        """Everything it printed."""
        return self._log.read_text()

    def end(self) -> None:
        """Stop it with its engine."""
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def serving(folder: str, log: Path, *, max_logprobs: int, context_length: int) -> Iterator[Served]:
    """A server that is starting; ended at the end."""
    served = Served(folder, log, max_logprobs=max_logprobs, context_length=context_length)
    try:
        yield served
    finally:
        served.end()
