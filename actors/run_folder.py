"""The run's folder on the nodes of its actors, where relative paths of its configuration begin."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import actors
from actors import FOLDER_VARIABLE
from opd_ray.errors import InputError

# What of the configuration lies in the run's folder: paths by key, as JSON.
CONTENTS_VARIABLE = "OPD_RAY_IN_FOLDER"


def folder_variables(paths: Mapping[str, str | None]) -> dict[str, str]:
    """Variables for an actor's process, whose relative paths then begin in the current folder.

    Args:
        paths: what it reads, by key; a name of the hub may be among them.
    """
    here = {
        key: path
        for key, path in paths.items()
        if path is not None and not Path(path).is_absolute() and Path(path).exists()
    }
    return {FOLDER_VARIABLE: os.getcwd(), CONTENTS_VARIABLE: json.dumps(here)}


def require_run_folder() -> None:
    """Before a process of an actor reads anything by a relative path.

    Raises:
        InputError: it would read something else, as its node lacks the run's folder.
    """
    if not actors.folder_missing:
        return
    folder = os.environ[FOLDER_VARIABLE]
    for key, path in json.loads(os.environ.get(CONTENTS_VARIABLE, "{}")).items():
        if not Path(path).exists():
            raise InputError(
                f"{key} = {path!r}: it is in the run's folder {folder}, which node "
                f"{socket.gethostname()} lacks ({actors.folder_missing}); have the folder on every "
                "node (a shared file system, or a copy at the same place), or give an absolute "
                "path that every node has"
            )
