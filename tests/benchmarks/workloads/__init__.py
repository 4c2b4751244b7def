"""The workloads, one a file; each is imported alone, by name."""

NAMES = (
    *("fine", "latency", "cold", "uneven", "millis", "constant", "results", "buffers", "blas"),
    *("generator", "graph", "options", "engines", "killed", "floors"),
)
