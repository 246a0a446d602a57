"""Submit a training job to a Ray cluster, follow its log, return its exit code, stop it on Ctrl-C.

python -m opd_ray.cluster.submit ADDRESS CONFIG [key=value ...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from aiohttp import ClientError

from opd_ray.borders import border, writing
from opd_ray.cluster.ray_address import TOKEN_REMEDY, token_source
from opd_ray.cluster.retries import Retries, start_count
from opd_ray.cluster.submit_files import stage
from opd_ray.errors import INTERRUPTED, RUN_FAILED, OpdError, RunError, exit_code

# How Ray stops the job: as Ctrl-C would, with time to write a checkpoint before it is killed.
STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "180"}
NO_AGENT = "No available agent"  # a head node answers some seconds before it can run a job
AGENT_SECONDS = 60.0
POLL_SECONDS = 0.5
# A job server that does not answer is asked for so long; the job may go on meanwhile.
LOST_SECONDS = 60.0
# A log that says nothing for so long is opened again: its connection may be dead without a word.
SILENT_SECONDS = 600.0
# Of jobs that their own process cannot start again, as the node is gone that it ran on.
_DIED = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")

ABOUT = f"""\
Follows the job's log and ends with its exit code. Ctrl-C stops the job, waits until it has stopped
and exits with {INTERRUPTED}; a second Ctrl-C leaves at once.

--retries N: the job starts a run that dies again, even after this command has been left, until N
starts in a row after the first have left no new checkpoint; not after bad input or Ctrl-C. A job
that is lost itself, with the node it ran on, is submitted again up to N times.

What travels with the job: the code of opd-ray, its packaged configs, a CONFIG file of your own with
all that it inherits, and modules of your own (a rule, a teacher, a task) that you name:
    --py-modules my_rule.py --py-modules my_package
    --working-dir FOLDER    all that is in it; the job runs there, so relative paths of it work
What the cluster must have: the dependencies of opd-ray on every node (the same versions everywhere;
see requirements/ and setup.py), and every folder that the config names (models, data,
run.output_dir) under the same absolute path on every node that uses it.
"""


class JobLost(RunError):
    """A job ended with its node, or the cluster knows nothing of it any more."""


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
        JobLost: the job's own process, which would know why it ended, is gone.
        RunError: the cluster does not accept the job, or does not answer any more.
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
        if info.error_type in _DIED:
            raise JobLost(f"{job} is lost: {info.message}")
        print(info.message, file=sys.stderr)
        return RUN_FAILED
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
        self._broken = False  # and said so

    def follow(self) -> None:
        """Show what the job prints until it has ended; a dropped connection is opened again.

        Raises:
            JobLost: the cluster does not know the job.
            RunError: the cluster does not answer any more.
        """
        answered = time.monotonic()
        while True:
            asyncio.run(self._tail())
            try:
                if self._client.get_job_status(self._job).is_terminal():
                    return
                answered = time.monotonic()
            except (OSError, RuntimeError) as error:
                if "does not exist" in str(error):
                    raise JobLost(
                        f"the cluster knows nothing of {self._job} any more: its head node has "
                        "been started anew"
                    ) from error
                if time.monotonic() - answered > LOST_SECONDS:
                    raise RunError(
                        f"the job server has not answered for {LOST_SECONDS:.0f} s ({error}); "
                        f"{self._job} may be at work all the same: `ray job logs {self._job}` "
                        "shows it when the server is back"
                    ) from error
            time.sleep(POLL_SECONDS)

    async def _tail(self) -> None:
        seen = 0
        log = self._client.tail_job_logs(self._job)
        try:
            while True:
                text = await asyncio.wait_for(anext(log), SILENT_SECONDS)
                new = text[max(0, self._shown - seen) :]
                seen += len(text)
                self._shown = max(self._shown, seen)
                self._out.write(new)
                self._out.flush()
        except (StopAsyncIteration, TimeoutError):
            return
        # What the client raises, on its own account or not, when the connection breaks.
        except (OSError, RuntimeError, ClientError) as error:
            if not self._broken:
                print(f"lost the job's log ({error}); trying again", file=sys.stderr)
            self._broken = seen == 0  # until it is there again


def connect(address: str) -> Any:
    """A client of the job server at ``address``: http://HOST:PORT, HOST:PORT, or "auto".

    Raises:
        RunError: nothing answers there, or it refuses this user.
    """
    # Ray lets these override the address that it is given; here the command line decides.
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(variable, None)
    if token_source() is not None:
        # Unlike `ray start`, Ray's job client does not look for a token by itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray reads the variables above while it is imported.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if address != "auto" and "://" not in address:
        address = f"http://{address}"
    _past_proxies(address)
    remedy = "give the head node's dashboard address, by default http://HEAD:8265"
    with border(f"the job server at {address} cannot be asked", remedy, RunError):
        try:
            return JobSubmissionClient(address)
        except ConnectionError as error:
            raise RunError(
                f"no Ray job server answers at {address}: {error} "
                "(the head node's dashboard address is needed, by default http://HEAD:8265)"
            ) from error
        except AuthenticationError as error:
            raise RunError(f"{address} refuses this user: {TOKEN_REMEDY}") from error


def _past_proxies(address: str) -> None:
    """Ask the job server without the environment's proxies, as Ray reads its logs too."""
    if host := urlsplit(address).hostname:
        for variable in ("no_proxy", "NO_PROXY"):
            known = os.environ.get(variable)
            os.environ[variable] = f"{known},{host}" if known else host


def _stay(client: Any, entrypoint: str, working_dir: Path, retries: Retries) -> int:
    """:func:`run_job`, once more when the job itself is lost."""
    while True:
        try:
            return run_job(client, entrypoint, working_dir)
        except JobLost as error:
            pause = retries.pause(RUN_FAILED, got_further=False)
            if pause is None:
                raise
            print(f"{error}; it is submitted again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


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
        "--py-modules",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="a module (.py) or package folder that travels along; may be given several times",
    )
    parser.add_argument(
        "--working-dir",
        type=Path,
        metavar="FOLDER",
        help="a folder whose contents travel along, and in which the job runs",
    )
    parser.add_argument(
        "--python", default="python", help="the interpreter on the cluster (default: %(default)s)"
    )
    parser.add_argument(
        "--retries", type=start_count, default=0, metavar="N", help="see below (default: none)"
    )
    args = parser.parse_intermixed_args(argv)
    with ExitStack() as stack:
        try:
            with writing(Path(tempfile.gettempdir())):
                made = tempfile.TemporaryDirectory(prefix="opd-ray-job-")
            folder = stack.enter_context(made)
            command = stage(
                Path(folder), args.config, args.overrides, args.py_modules, args.working_dir
            )
            if args.retries:
                command[1:1] = ["--retries", str(args.retries)]
            client = connect(args.address)
            # exec: Ray signals the shell too, which would end before the run has saved itself.
            entrypoint = shlex.join(["exec", args.python, "-m", "opd_ray", *command])
            return _stay(client, entrypoint, Path(folder), Retries(args.retries))
        except KeyboardInterrupt:
            return INTERRUPTED
        except OpdError as error:
            print(f"submit.sh: {error}", file=sys.stderr)
            return exit_code(error)


if __name__ == "__main__":
    raise SystemExit(main())
