#!/usr/bin/env bash
# Train on a Ray cluster, through its job server:
#     bash launch/submit.sh [--retries N] ADDRESS CONFIG [key=value ...]   e.g. http://HEAD:8265 demo run.output_dir=/shared/run
#
# Follows the job's log and ends with its exit code; Ctrl-C stops the job and waits until it has stopped.
# --retries N starts a run that dies again, until N starts in a row have left no new checkpoint.
# What travels (--py-modules, --working-dir for code of your own) and what the cluster must have: bash launch/submit.sh --help
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
env="$(bash "$here/setup_env.sh")"
exec "$env/bin/python" -m opd_ray.cluster.submit "$@"
