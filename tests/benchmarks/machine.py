"""The machine that ran the benchmarks, and the versions of what ran on it."""

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "joblib", "loky", "mpire", "dask", "distributed", "ray")


def machine(date: str) -> dict[str, str]:
    """Describe the machine, the versions, and the day."""
    import parmap

    facts = {
        "date": date,
        "system": platform.system(),
        "cpu": first_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": gigabytes(first_value("/proc/meminfo", "MemTotal")),
        "python": platform.python_version(),
        "parmap": parmap.__version__,
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def first_value(path: str, key: str) -> str:
    """Look up a line ``key: value`` of a file; nothing if it has none."""
    if not Path(path).exists():
        return ""
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def gigabytes(text: str) -> str:
    """Write kilobytes as gigabytes."""
    return f"{int(text.removesuffix(' kB')) / 1024**2:.0f} GiB" if text else "unknown"


def described(facts: dict[str, str]) -> str:
    """Write the machine as a sentence or two."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("parmap", *PACKAGES))
    return (
        f"{facts['system']}, {facts['cpu']}, {facts['cores']} cores, {facts['memory']}; "
        f"Python {facts['python']}, {versions}; {facts['date']}."
    )
