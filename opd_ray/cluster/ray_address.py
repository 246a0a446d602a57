"""Where a Ray runs already: does it answer, with whose token, and why it does not take us."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from opd_ray.borders import first_line
from opd_ray.errors import PlacementError, RunError

TOKEN_FILE = Path(".ray/auth_token")  # below the home folder, where Ray keeps it
TOKEN_REMEDY = (
    "copy the head node's ~/.ray/auth_token to the same place here, or set RAY_AUTH_TOKEN_PATH to "
    "a copy of it"
)
# Seconds to wait for an answer at the cluster's address: Ray itself would try for minutes.
_CONNECT_SECONDS = 5.0


def token_source() -> str | None:
    """Where this user's token for Ray lies, in Ray's own order; None: there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"RAY_AUTH_TOKEN_PATH = {path}"
    path = str(Path(os.environ.get("HOME", "~")).expanduser() / TOKEN_FILE)
    return path if os.path.isfile(path) else None


def named_address(address: str) -> str:
    """What ``address`` leads to: "auto" is RAY_ADDRESS where that is set."""
    return (os.environ.get("RAY_ADDRESS") or "auto") if address == "auto" else address


def check_answer(address: str) -> None:
    """Refuse what is no HOST:PORT of a Ray's head node, and one at which nothing listens.

    Raises:
        PlacementError: names the address and what to write in its place.
    """
    if address == "auto":
        return  # Ray looks for it
    scheme, found, rest = address.rpartition("://")
    if scheme == "ray":
        raise PlacementError(
            f"{_named(address)}: a run streams rollouts, which Ray's client (ray://) does not "
            "carry; give HOST:PORT of the head node (by default port 6379) on one of the cluster's "
            "machines, or submit the run as a job: launch/submit.sh http://HEAD:8265 CONFIG"
        )
    if found:
        raise PlacementError(
            f"{_named(address)}: that is the address of a job server; submit the run there "
            f"(launch/submit.sh {address} CONFIG), or give HOST:PORT of the head node"
        )
    host, colon, port = rest.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise PlacementError(
            f"{_named(address)} is no address: write HOST:PORT of the head node, or auto for the "
            "Ray of this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _nobody_answers(address, str(error)) from error


def not_joined(address: str, error: BaseException) -> PlacementError | RunError:
    """Why Ray could not be joined, from what it raised.

    A RunError where somebody listens at an address that was given: it may be a Ray that is busy,
    or not up yet.
    """
    chain = list(_chain(error))
    said = "\n".join(f"{type(link).__name__}: {link}" for link in chain)
    if "Unauthenticated" in said or "AuthenticationError" in said:
        source = token_source()
        has = f"the token in {source} is not its own" if source else "there is no token here"
        return PlacementError(
            f"{_named(address)}: a Ray runs there and refuses this user: {has}; {TOKEN_REMEDY}"
        )
    if "Version mismatch" in said:
        versions = [line.strip() for line in said.splitlines() if line.startswith("    ")][:4]
        return PlacementError(
            f"{_named(address)}: a Ray of another version runs there ({', '.join(versions[:2])}; "
            f"here: {', '.join(versions[2:])}); use one environment on every machine"
        )
    if address == "auto":
        return _nobody_answers(address, first_line(chain[-1]))
    return RunError(
        f"{_named(address)}: somebody listens there, and no Ray answers ({first_line(chain[-1])}): "
        "a head node (by default port 6379) that is busy or not up yet; give the same command "
        "again. Or it is another port: write that of the head node"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, to the first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _named(address: str) -> str:
    """The key, or the variable that stands for it."""
    if address == os.environ.get("RAY_ADDRESS"):
        return f"cluster.address (from RAY_ADDRESS) = {address!r}"
    return f"cluster.address = {address!r}"


def _nobody_answers(address: str, reason: str) -> PlacementError:
    return PlacementError(
        f"{_named(address)}: no Ray answers there ({reason}); start one with `ray start --head`, "
        "or leave the key out to start one for this run"
    )
