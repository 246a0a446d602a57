#!/usr/bin/env bash
# Train on this machine:
#     bash launch/single_node.sh [--retries N] CONFIG [key=value ...]    CONFIG: a packaged name or a .yaml file
#
# --retries N: a run that dies is started again, until N starts in a row after the first have left no
# new checkpoint. Not after bad input or Ctrl-C.
# Joins the Ray cluster that $RAY_ADDRESS names, or one started here with "ray start"; otherwise the
# run starts a Ray of its own and ends it afterwards. An explicit cluster.address=... decides alone.
set -euo pipefail
retries=()
if [[ "${1:-}" == --retries ]]; then
    retries=(--retries "${2:-}")
    shift "$(($# < 2 ? $# : 2))"
fi
if (($# == 0)) || [[ "$1" == -h || "$1" == --help ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
env="$(bash "$here/setup_env.sh")"
config="$1"
shift

answers() { # answers HOST:PORT: something listens there
    local host="${1%:*}"
    host="${host#[}"
    timeout 5 bash -c '< "/dev/tcp/$0/$1"' "${host%]}" "${1##*:}" 2> /dev/null
}

address="${RAY_ADDRESS:-}"
started="${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/ray_current_cluster" # "ray start" leaves its address here
if [[ " $*" == *" cluster.address="* ]]; then
    address=
elif [[ -z "$address" && -s "$started" ]]; then
    address="$(< "$started")"
    if ! answers "$address"; then
        echo "the Ray cluster at $address ($started) does not answer: starting one for this run" >&2
        address=
    fi
fi
if [[ -n "$address" ]]; then
    echo "joining the Ray cluster at $address" >&2
    set -- "$@" "cluster.address=$address"
fi
exec "$env/bin/opd-ray" train "${retries[@]}" --config "$config" "$@"
