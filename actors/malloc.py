"""How trainers and hf teachers on a CPU keep the memory that they have freed."""

# glibc gives large blocks back to the kernel when they are freed, and activations come and go in
# every layer: without these a trainer's step spends about a tenth of its time on page faults. One
# arena, as the backward pass frees in another thread what the forward pass has allocated. Not for
# rollout engines: new weights every step leave holes, and the process grows.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_ARENA_MAX": "1",
}
