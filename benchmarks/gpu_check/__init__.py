"""``launch/gpu_check.sh``: what works on this machine's GPU, in a report to be sent in.

Among the benchmarks because it stands above library and actors, measures both, and is not
installed. Every part is a file in ``parts/`` and runs in a process of its own; outside of them, and
of their inputs, nothing imports torch.
"""
