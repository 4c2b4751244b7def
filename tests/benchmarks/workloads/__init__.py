"""The workloads, one a file; each is imported alone, by name."""

NAMES = (
    *("fine", "latency", "cold", "dispatch", "uneven", "constant", "results", "blas"),
    *("generator", "graph", "options", "engines", "killed", "buffers", "floors"),
)
