"""Submit a training job to a Ray cluster, follow its log, return its exit code, stop it on Ctrl-C.

python -m opd_ray.cluster.submit ADDRESS CONFIG [key=value ...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from opd_ray.config.files import SUFFIXES, layers
from opd_ray.config.load import load_config
from opd_ray.errors import INTERRUPTED, ConfigError, OpdError, RunError, exit_code

PACKAGES = ("opd_ray", "actors", "configs")
JOB_CONFIG = "job.yaml"

# How Ray stops the job: as Ctrl-C would, with time to write a checkpoint before it is killed.
STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "180"}
NO_AGENT = "No available agent"  # a head node answers some seconds before it can run a job
AGENT_SECONDS = 60.0
POLL_SECONDS = 0.5

ABOUT = f"""\
Follows the job's log and ends with its exit code. Ctrl-C stops the job, waits until it has stopped
and exits with {INTERRUPTED}; a second Ctrl-C leaves at once.

What travels with the job: the code of opd-ray, its packaged configs, and a CONFIG file of your own
with all that it inherits.
What the cluster must have: the dependencies of opd-ray on every node (the same versions everywhere;
see requirements/ and setup.py), and every folder that the config names (models, data,
run.output_dir) under the same path on every node that uses it.
"""


def stage(folder: Path, config: str, overrides: Sequence[str]) -> list[str]:
    """Fill ``folder`` with all that travels; the arguments of ``opd-ray`` for the cluster.

    Raises:
        ConfigError: the config or an override is wrong, or the output folder is a relative path,
            which on the cluster would be inside Ray's temporary copy of ``folder``.
    """
    output_dir = load_config(config, overrides).run.output_dir
    if not Path(output_dir).is_absolute():
        raise ConfigError(
            f"run.output_dir = {output_dir!r}: a job's results would be deleted with its working "
            "folder; give the path of a folder that the cluster keeps, e.g. "
            "run.output_dir=/shared/runs/first"
        )
    for package in PACKAGES:
        code = Path(str(resources.files(package)))
        compiled = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(code, folder / package, ignore=compiled)
    if config.endswith(SUFFIXES):
        # One file out of all it inherits, its ${...} left for the cluster to resolve.
        merged = OmegaConf.merge(*(OmegaConf.create(layer.values) for layer in layers(config)))
        (folder / JOB_CONFIG).write_text(OmegaConf.to_yaml(merged), encoding="utf-8")
        config = JOB_CONFIG
    return ["train", "--config", config, *overrides, "cluster.address=auto"]


def run_job(client: Any, entrypoint: str, working_dir: Path, out: TextIO = sys.stdout) -> int:
    """Submit ``entrypoint`` and stay with it until it has ended.

    Args:
        client: a ``ray.job_submission.JobSubmissionClient``.
        entrypoint: shell command, run on the cluster in a copy of ``working_dir``.
        working_dir: what the job needs to find; uploaded.
        out: gets the job's log.

    Returns:
        The exit code of the entrypoint; 1 if the job could not start or was stopped by somebody
        else; 130 after Ctrl-C, once the job has stopped.

    Raises:
        RunError: the cluster does not accept the job.
    """
    job = f"opd-ray-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    log = _Log(client, job, out)
    interrupted = False
    try:
        _submit(client, job, entrypoint, working_dir)
        print(f"submitted {job}", file=sys.stderr)
        log.follow()
    except KeyboardInterrupt:
        interrupted = True
        print(f"stopping {job} (Ctrl-C again: leave without waiting)", file=sys.stderr)
        try:
            client.stop_job(job)
            log.follow()
        except RuntimeError as error:  # not there yet, for example: still being uploaded
            print(f"{job} was not stopped: {error}", file=sys.stderr)
            return INTERRUPTED
        except KeyboardInterrupt:
            print(f"left while {job} is stopping", file=sys.stderr)
            return INTERRUPTED
    info = client.get_job_info(job)
    print(f"{job}: {info.status}", file=sys.stderr)
    if interrupted and info.status == "STOPPED":
        return INTERRUPTED
    if info.driver_exit_code is None:
        print(info.message, file=sys.stderr)
        return 1
    return int(info.driver_exit_code)


def _submit(client: Any, job: str, entrypoint: str, working_dir: Path) -> None:
    """Submit, waiting for a cluster that has only just started."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env={"working_dir": str(working_dir), "env_vars": STOP_ENVIRONMENT},
            )
            return
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise RunError(f"the cluster did not take the job: {error}") from error
            time.sleep(POLL_SECONDS)


class _Log:
    """The log of one job, shown once even if it is opened several times."""

    def __init__(self, client: Any, job: str, out: TextIO) -> None:
        self._client = client
        self._job = job
        self._out = out
        self._shown = 0  # characters

    def follow(self) -> None:
        """Show what the job prints until it has ended; a dropped connection is opened again."""
        while True:
            asyncio.run(self._tail())
            if self._client.get_job_status(self._job).is_terminal():
                return
            time.sleep(POLL_SECONDS)

    async def _tail(self) -> None:
        seen = 0
        try:
            async for text in self._client.tail_job_logs(self._job):
                new = text[max(0, self._shown - seen) :]
                seen += len(text)
                self._shown = max(self._shown, seen)
                self._out.write(new)
                self._out.flush()
        except RuntimeError as error:  # what the client raises when the connection breaks
            print(f"lost the job's log ({error}); trying again", file=sys.stderr)


def connect(address: str) -> Any:
    """A client of the job server at ``address``: http://HOST:PORT, HOST:PORT, or "auto".

    Raises:
        RunError: nothing answers there, or it refuses this user.
    """
    # Ray lets these override the address that it is given; here the command line decides.
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(variable, None)
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or Path("~/.ray/auth_token").expanduser().is_file():
        # Unlike `ray start`, Ray's job client does not look for a token by itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray reads the variables above while it is imported.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if address != "auto" and "://" not in address:
        address = f"http://{address}"
    try:
        return JobSubmissionClient(address)
    except ConnectionError as error:
        raise RunError(
            f"no Ray job server answers at {address}: {error} "
            "(the head node's dashboard address is needed, by default http://HEAD:8265)"
        ) from error
    except AuthenticationError as error:
        raise RunError(
            f"{address} refuses this user: copy the head node's ~/.ray/auth_token to the same "
            "place here, or set RAY_AUTH_TOKEN_PATH to a copy of it"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command: stage, submit, follow; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="submit.sh",
        description="Train on a Ray cluster, through its job server.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="http://HEAD:8265, or auto")
    parser.add_argument("config", metavar="CONFIG", help="a packaged config's name or a .yaml file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="as for opd-ray train")
    parser.add_argument(
        "--python", default="python", help="the interpreter on the cluster (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="opd-ray-job-") as folder:
        try:
            command = stage(Path(folder), args.config, args.overrides)
            client = connect(args.address)
            # exec: Ray signals the shell too, which would end before the run has saved itself.
            entrypoint = shlex.join(["exec", args.python, "-m", "opd_ray", *command])
            return run_job(client, entrypoint, Path(folder))
        except OpdError as error:
            print(f"submit.sh: {error}", file=sys.stderr)
            return exit_code(error)


if __name__ == "__main__":
    raise SystemExit(main())
