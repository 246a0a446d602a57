#!/usr/bin/env bash
# Train on the nodes of a Slurm job, with opd-ray's environment activated:
#     sbatch --nodes=4 --gpus-per-node=8 launch/cluster/slurm.sh [--retries N] CONFIG run.output_dir=/shared/runs/first [key=value ...]
#
# Five minutes before its time limit the run writes a checkpoint, and the job is queued again and goes
# on from it. So it is when a node fails, or the run does: until N starts in a row (default 3) have left no
# new checkpoint. Not after bad input. Stop it for good, with a checkpoint:
#     scancel --batch --signal=TERM JOB
#SBATCH --job-name=opd-ray
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

retries=3
if [[ "${1:-}" == --retries ]]; then
    retries="${2:-}"
    shift "$(($# < 2 ? $# : 2))"
fi
if (($# == 0)) || [[ -z "${SLURM_JOB_ID:-}" || ! "$retries" =~ ^[0-9]+$ ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
config="$1"
shift

say() { printf 'opd-ray job %s: %s\n' "$SLURM_JOB_ID" "$*" >&2; }

# The run's process, on this node: Slurm's own signals go to Ray too, which has to outlive it.
process="${TMPDIR:-/tmp}/opd-ray-$SLURM_JOB_ID.pid"
failures="opd-ray-$SLURM_JOB_ID.failures" # in the folder that the job was submitted from
rm -f "$process"
stopped=
stop_run() { # stop_run WHY: the run writes a checkpoint and ends
    stopped="$1"
    say "$1: stopping the run with a checkpoint"
    if [[ -s "$process" ]]; then kill -TERM "$(< "$process")"; fi
}
trap 'stop_run "the time limit is near"' USR1
trap 'stop_run "told to stop"' TERM

# This script is on the first node, which the address makes Ray's head node.
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
ray get-auth-token --generate > /dev/null || exit 1 # in the home folder, which all nodes see
export RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" \
    ray symmetric-run --address "$head:${OPD_RAY_PORT:-6379}" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    bash -c 'echo "$$" > "$0" && exec "$@"' "$process" \
    opd-ray train --retries "$retries" --config "$config" "$@" cluster.address=auto &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do # a signal ends a wait before the step does
    code=0
    wait "$step" || code=$?
done
rm -f "$process"

again() { # again WHY
    say "$1: the job is queued again"
    scontrol requeue "$SLURM_JOB_ID" || say "and Slurm refuses; submit it again by hand to go on"
}
case "$code" in
    0 | 2)
        rm -f "$failures"
        ;;
    *)
        if [[ "$stopped" == *limit* ]]; then
            rm -f "$failures"
            again "$stopped"
        elif [[ -z "$stopped" && "$code" != 130 ]]; then
            failed=$(($(cat "$failures" 2> /dev/null || echo 0) + 1))
            if ((failed > retries)); then
                say "given up: failed $failed times in a row (exit code $code; --retries $retries)"
                rm -f "$failures"
            else
                echo "$failed" > "$failures"
                again "failed with exit code $code"
            fi
        fi
        ;;
esac
exit "$code"
