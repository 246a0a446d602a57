#!/usr/bin/env bash
# Set everything up and run the checks and tests:
#     bash launch/test.sh [all | checks | unit | actors | runs] [pytest arguments]
#
# checks: ruff, mypy, directions of imports, the docs as a site, the package, known vulnerabilities; unit: the pure core, no engine; actors: every actor on its real engine;
# runs: whole runs. Every part is run even if one before it failed. Exit code 1: a check failed; 2: only tests did.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
env="$(bash "$here/setup_env.sh")" || exit 1
cd "$here/.." || exit 1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # engines share the cores; more threads only contend
export PYTHONDONTWRITEBYTECODE=                # else each of hundreds of processes compiles our code anew

part=all
case "${1:-}" in
    all | checks | unit | actors | runs)
        part="$1"
        shift
        ;;
esac

failed=0
step() { # step NAME COMMAND...: run it, tell how long it took, remember a failure
    local name="$1" start=$SECONDS status=0
    shift
    "$@" || status=$?
    if ((status)); then
        failed=1
        printf '== %s: FAILED (exit code %d) after %d s\n' "$name" "$status" "$((SECONDS - start))"
    else
        printf '== %s: passed in %d s\n' "$name" "$((SECONDS - start))"
    fi
}

package() { # package PYTHON: sdist, the wheel made of it, and what a package index would say to both
    local built status
    built="$(mktemp -d)"
    "$1" -m build --no-isolation --outdir "$built" . > "$built.log" 2>&1 || { cat "$built.log"; return 1; }
    "$1" -m twine --no-color check --strict "$built"/*
    status=$?
    rm -rf "$built" "$built.log"
    return "$status"
}

if [[ "$part" == all || "$part" == checks ]]; then
    step "ruff check" "$env/bin/ruff" check .
    step "ruff format" "$env/bin/ruff" format --check .
    step "mypy" "$env/bin/mypy"
    step "import directions" "$env/bin/lint-imports" --no-logo
    docs="$(mktemp -d)"
    step "docs as a site" env NO_MKDOCS_2_WARNING=1 "$env/bin/mkdocs" build --strict --quiet --site-dir "$docs"
    rm -rf "$docs"
    step "package" package "$env/bin/python"
    step "known vulnerabilities" env PYTHON="$env/bin/python" bash "$here/audit.sh"
    [[ "$part" == checks ]] && exit "$failed"
fi

# One pytest for all of them, so that its summary is the last line and counts everything. Two files at
# a time: engines spend much of a test on starting up, which uses one core. The longest come first, so
# that both are busy to the end.
case "$part" in
    all) folders=(tests/runs tests/actors tests/unit) ;;
    *) folders=("tests/$part") ;;
esac
present=()
for folder in "${folders[@]}"; do [[ -d "$folder" ]] && present+=("$folder"); done
"$env/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "${present[@]}" "$@" && exit "$failed"
exit "$((failed ? 1 : 2))"
