#!/usr/bin/env bash
# Prepare the Python environment of opd-ray and print its folder:
#     env="$(bash launch/setup_env.sh)" && "$env/bin/opd-ray" --help
#
# Uses the activated environment ($VIRTUAL_ENV), else makes .venv in the repository, and installs the
# exact versions of requirements/cpu.txt and the project itself (editable). Does nothing, at once, when
# that is done already; several calls at a time wait for each other. Everything but the folder goes
# to stderr, details to opd-ray-setup.log in the environment. An environment for GPUs, made with
# pip install '.[gpu]', is used as it is: the locked packages are for CPUs.
#
#     PYTHON=/path/to/python3.12   the interpreter to make .venv with
#     OPD_RAY_SETUP=none           take the activated environment as it is, whatever is in it
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
lock="$root/requirements/cpu.txt"
torch_index=https://download.pytorch.org/whl/cpu # PyTorch's own index of CPU builds

say() { printf 'opd-ray setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

is_suitable() { # is_suitable PYTHON: it runs, is 3.11 or newer, and can make environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do # 3.11: the lock's own
        if command -v "$name" > /dev/null && is_suitable "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer with venv found (looked for ${PYTHON:-python3.11 to 3.13, python3});" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3.11"
}

check_machine() {
    [[ "$(uname -sm)" == "Linux x86_64" ]] ||
        fail "the locked packages are for Linux on x86_64, this is $(uname -sm); install the ranges of" \
            "setup.py in an environment of your own and set OPD_RAY_SETUP=none"
    local compiler="${CXX:-g++}"
    command -v "${compiler%% *}" > /dev/null ||
        fail "no C++ compiler ($compiler) found; torch, vLLM and DeepSpeed compile CPU kernels when used:" \
            "install one (Debian, Ubuntu: apt-get install g++) or set CXX"
    local free_kib needed_gib=6 # 4 installed, the rest while it unpacks
    compgen -G "$env/lib/python3.*/site-packages/vllm/__init__.py" > /dev/null && needed_gib=1
    free_kib="$(df -Pk "$env" | awk 'NR == 2 { print $4 }')"
    ((free_kib >= needed_gib * 1024 * 1024)) ||
        fail "only $((free_kib / 1024)) MiB free in $env, about $needed_gib GiB are needed;" \
            "free some, or activate an environment on a larger disk"
}

# Shows one line that counts seconds while the command in front of it works (terminals only).
tick() {
    local start=$SECONDS
    while sleep 1; do
        printf '\ropd-ray setup: %s ... %d s ' "$1" "$((SECONDS - start))" >&2
    done
}

run() { # run "what it does" COMMAND...: output to the log; on failure its tail and the end
    local what="$1" start=$SECONDS ticker=
    shift
    if [[ -t 2 ]]; then
        tick "$what" 9>&- &
        ticker=$!
        trap 'kill "$ticker" 2> /dev/null || true' EXIT
    else
        say "$what ..."
    fi
    local status=0
    "$@" >> "$log" 2>&1 || status=$?
    if [[ -n "$ticker" ]]; then
        kill "$ticker" 2> /dev/null || true
        wait "$ticker" 2> /dev/null || true
        trap - EXIT
        printf '\r\033[K' >&2
    fi
    if ((status)); then
        tail -n 20 "$log" >&2
        fail "failed: $what (exit code $status after $((SECONDS - start)) s); the whole log: $log"
    fi
    say "$what: done in $((SECONDS - start)) s"
}

pip() { # Installs into this environment and nowhere else, whatever the user's settings say.
    env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PYTHONPATH PIP_USER=0 PIP_NO_INPUT=1 \
        "$env/bin/python" -m pip --disable-pip-version-check "$@"
}
export -f pip

# The plain PyPI build of torch is a CUDA build, whose libraries --no-deps would leave out. So: the CPU
# build where the configured indexes have it, else from PyTorch's index, which is asked for nothing else.
install_torch() {
    local torch
    torch="$(grep '^torch==' "$lock")"
    if ! pip install --no-deps "$torch" 2>&1 | tee "$log.torch"; then
        grep -q "No matching distribution found for torch" "$log.torch" || return 1
        pip install --no-deps --extra-index-url "$torch_index" "$torch" || return 1
    fi
    rm -f "$log.torch"
}

# All of the lock but torch, two quarters at a time: to unpack and to compile keeps one core busy.
install_lock() {
    local packages
    # From the end, where the largest are: transformers, triton, vllm.
    mapfile -t packages < <(grep '==' "$lock" | grep -v '^torch==' | sort -r)
    printf '%s\n' "${packages[@]}" | env="$env" xargs -P 2 -n "$(((${#packages[@]} + 3) / 4))" \
        bash -c 'pip install --no-deps "$@"' pip 2>&1 | tee "$log.lock" && rm "$log.lock" && return
    grep -A 9 '^ERROR' "$log.lock" # at the end of the log, whatever the others said after it
    return 1
}

fingerprint() { # Changes whenever an installation would come out differently.
    {
        echo "$root"
        readlink -f "$env/bin/python"
        cat "$lock" "$root/setup.py" "$root/pyproject.toml" "$root/launch/setup_env.sh"
    } | sha256sum
}

gpu_packages() { # the vLLM and torch of $env that are not built for CPUs
    local found name names=()
    for found in "$env"/lib/python3.*/site-packages/{vllm,torch}-[0-9]*.dist-info; do
        name="${found##*/}"
        [[ -d "$found" && "$name" != *+cpu.dist-info ]] && names+=("${name%.dist-info}")
    done
    echo "${names[*]}"
}

if [[ "${OPD_RAY_SETUP:-}" == none ]]; then
    [[ -n "${VIRTUAL_ENV:-}" ]] || fail "OPD_RAY_SETUP=none needs an activated environment"
    echo "$VIRTUAL_ENV"
    exit
fi

env="${VIRTUAL_ENV:-$root/.venv}"
stamp="$env/opd-ray-setup.stamp"
log="$env/opd-ray-setup.log"
if [[ -x "$env/bin/python" && -f "$stamp" && "$(< "$stamp")" == "$(fingerprint)" ]]; then
    echo "$env"
    exit
fi
for_gpus="$(gpu_packages)"
if [[ -n "$for_gpus" && ! -f "$stamp" ]]; then
    [[ -x "$env/bin/opd-ray" ]] ||
        fail "$env has $for_gpus, which the locked packages for CPUs would replace, and no opd-ray:" \
            "pip install '.[gpu]' there, or activate another environment"
    say "taking $env as it is, with $for_gpus"
    echo "$env"
    exit
fi

mkdir -p "$env"
exec 9> "$env/opd-ray-setup.lock"
flock --nonblock 9 || { say "waiting for another set-up of $env" && flock 9; }
if [[ -x "$env/bin/python" && -f "$stamp" && "$(< "$stamp")" == "$(fingerprint)" ]]; then
    echo "$env" # the other call did it
    exit
fi

check_machine
: > "$log"
if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    is_suitable "$env/bin/python" ||
        fail "the activated environment $env has no Python 3.11 or newer: deactivate it, or activate one that has"
    "$env/bin/python" -c 'import pip' 2> /dev/null ||
        run "adding pip to $env" "$env/bin/python" -m ensurepip
elif ! "$env/bin/python" -m pip --version > /dev/null 2>&1; then # none, or one left half-made
    python="$(find_python)"
    run "making $env with $python" "$python" -m venv "$env"
fi
rm -f "$stamp"
run "installing torch" install_torch
run "installing $(grep -c '==' "$lock") packages (1 to 4 minutes)" install_lock
run "installing opd-ray" pip install --no-deps --no-build-isolation --no-index -e "$root"
fingerprint > "$stamp"
echo "$env"
