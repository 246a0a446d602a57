#!/usr/bin/env bash
# Set everything up and run the demo: a small student learns from a teacher through the whole system.
#     bash launch/demo.sh [key=value ...]        e.g. run.seed=1 run.output_dir=/tmp/demo
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
env="$(bash "$here/setup_env.sh")"
exec "$env/bin/opd-ray" demo "$@"
