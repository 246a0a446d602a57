"""The compiler of DeepSpeed's optimizer for main memory, at half its time: it is not to be fast.

DeepSpeed's own flags ask for all of GCC's optimisation and for what a debugger wants to know.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

_COMPILER = """#!/usr/bin/env bash
args=()
for arg in "$@"; do
    case "$arg" in
        -O3) args+=(-O0) ;;
        -g) ;;
        *) args+=("$arg") ;;
    esac
done
exec COMPILER "${args[@]}"
"""


@functools.cache
def quick_compiler() -> dict[str, str]:
    """Variables for a process that compiles: with what, and into a folder of these tests alone.

    So no run of the user's gets what is slow, and no lock of a process that was killed is met.
    """
    folder = Path(tempfile.mkdtemp(prefix="opd-ray-compiled-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compiler = folder / "g++"  # PyTorch looks at the name
    compiler.write_text(_COMPILER.replace("COMPILER", os.environ.get("CXX", "c++")))
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(folder)}
