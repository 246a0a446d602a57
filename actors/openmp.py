"""How the OpenMP threads of every actor wait for work."""

# Threads that spin for long take a core that another stage needs, or the half of a core that their
# own main thread would have. Threads that sleep at once make vLLM's short matrix products wait for
# them to wake up. So they spin for some microseconds and then sleep. (GNU's OpenMP reads the second
# variable, others only the first.)
OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
