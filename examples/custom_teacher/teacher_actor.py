"""Start a teacher as a named Ray actor that outlives this script, for any number of runs to share.

ray start --head
python examples/custom_teacher/teacher_actor.py --topk 16 --temperature 1.5
ray stop, or ray.kill(ray.get_actor("soft-teacher", "opd-ray")), ends it.
"""

import argparse

import ray
from teacher_class import SoftTeacher

from opd_ray.models.pairs.demo import pair_folder


def main() -> None:
    """Create the actor in a running Ray and wait until it has loaded."""
    parser = argparse.ArgumentParser(description="Serve the teacher of teacher_class.py.")
    parser.add_argument("--path", default=str(pair_folder() / "teacher"), help="Hugging Face model")
    parser.add_argument("--topk", type=int, default=16, help="the runs' teacher.topk")
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--name", default="soft-teacher", help="the runs' teacher.actor_name")
    parser.add_argument("--cpus", type=float, default=0, help="Ray CPUs that it reserves")
    args = parser.parse_args()
    # The namespace is the runs' teacher.actor_namespace; RAY_ADDRESS may name another cluster.
    ray.init(address="auto", namespace="opd-ray", log_to_driver=False)
    # Any class with info() and score(requests) becomes a teacher this way; close() is never called.
    actor = (
        ray.remote(SoftTeacher)
        .options(name=args.name, lifetime="detached", num_cpus=args.cpus)
        .remote(args.path, args.topk, args.temperature)
    )
    print(f"actor {args.name} serves {ray.get(actor.info.remote())}")


if __name__ == "__main__":
    main()
