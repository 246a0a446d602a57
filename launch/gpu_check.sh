#!/usr/bin/env bash
# What of opd-ray works on this machine's GPU? A quarter of an hour, no network, nothing is installed:
#     bash launch/gpu_check.sh [--list] [--device cpu] [--only NAME ...] [--minutes 15] [--out FOLDER]
#
# Takes the activated environment, else python3, and runs every part that its packages allow: PyTorch
# and transformers are enough for the first. Writes gpu_check_report/report.md, to be sent in: docs/gpu.md.
#
#     PYTHON=/path/to/python3   the interpreter to take
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}"
python="${python:-python3}"

fail() {
    printf 'gpu_check: %s\n' "$*" >&2
    exit 2
}

command -v "$python" > /dev/null || fail "no $python found: activate an environment, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1), and opd-ray needs Python 3.11 or newer: set PYTHON"
[[ -d "$root/benchmarks/gpu_check" ]] ||
    fail "there is no $root/benchmarks/gpu_check: take a clone of the repository, not a package"
export PYTHONPATH="$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m gpu_check "$@"
