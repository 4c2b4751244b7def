"""How much memory processes hold; Linux only."""

import os
from pathlib import Path

import psutil


def tree(root: int) -> list[psutil.Process]:
    """Give a process and all below it."""
    try:
        first = psutil.Process(root)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def held(root: int) -> int:
    """Count the memory of a process and all below it, each page and each file in memory once."""
    private, files = 0, {}
    for process in tree(root):
        folder = Path("/proc", str(process.pid))
        try:
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    private += 1024 * int(line.split()[1])
            mapped = [line.split()[-1] for line in (folder / "maps").read_text().splitlines()]
            for file in {*(folder / "fd").iterdir(), *map(Path, mapped)}:
                target = os.fspath(file.readlink() if file.is_symlink() else file)
                if target.startswith(("/memfd:", "/dev/shm/")) and file.exists():
                    files[file.stat().st_ino] = 512 * file.stat().st_blocks
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return private + sum(files.values())


def resident() -> int:
    """Count the resident bytes of this process and its workers; what they share counts for each."""
    total = 0
    for process in tree(os.getpid()):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
