"""How the processes that compute on a CPU keep the memory that they have freed."""

# glibc gives large blocks back to the kernel when they are freed, and activations come and go in
# every layer: without these a trainer's step spends about a tenth of its time on page faults, and
# the prefill of a vLLM engine up to that. One arena, as other threads free (a backward pass) or
# allocate (an engine) than those that came first.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_ARENA_MAX": "1",
}
