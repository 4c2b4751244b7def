"""The code on the pages of the documentation, as scripts, with what they should print.

A block that begins with an import begins a script; the blocks after it go on with it. On a page
that says so in a comment all blocks are one script. A block of ``text`` right below a block of code
is what that code prints, with ``...`` for what differs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
# What a plan of that name needs beyond parmap.
_ENGINES = {"dask": "distributed", "ray": "ray", "joblib": "joblib"}
_CLUSTERS = {"ssh", "slurm"}
_WHOLE = "<!-- one script -->"
_MARK = "-- the end of a block --"
# Two clusters of Dask at a time, of two tests, want the port of the dashboard: the second says that
# it takes another.
_WARNINGS = ("-W", "error", "-W", "ignore:Port 8787 is already in use")


@dataclass(frozen=True)
class Script:
    """Blocks of code that run one after the other, in one process."""

    page: Path
    number: int
    blocks: tuple[str, ...]
    outputs: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}"

    @property
    def plans(self) -> set[str]:
        return set(re.findall(r"plan\(\[?[\"'](\w+)", "".join(self.blocks)))

    @property
    def on_a_cluster(self) -> bool:
        return bool(self.plans & _CLUSTERS)

    @property
    def packages(self) -> set[str]:
        """What must be installed."""
        nodes = [node for block in self.blocks for node in ast.walk(ast.parse(block))]
        found = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        found |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        tops = {name.partition(".")[0] for name in found}
        return (tops | {_ENGINES[p] for p in self.plans & set(_ENGINES)}) - sys.stdlib_module_names

    def run(self, folder: Path, **environ: str) -> None:
        """Run it, without a guard, in another folder than the checkout; check what it prints."""
        script = folder / "script.py"
        script.write_text(f"\nprint({_MARK!r})\n".join(self.blocks), encoding="utf-8")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PARMAP")}
        # Not the Ray of a test that runs at the same time, which others end. Its sockets want a
        # short path.
        with tempfile.TemporaryDirectory(prefix="ray") as rays:
            done = subprocess.run(
                [sys.executable, *_WARNINGS, script],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": rays, **environ},
                capture_output=True,
                text=True,
                timeout=100,
            )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        printed = done.stdout.split(f"{_MARK}\n")
        for block, wanted, got in zip(self.blocks, self.outputs, printed, strict=True):
            if wanted is not None:
                same = OutputChecker().check_output(wanted, got, ELLIPSIS | NORMALIZE_WHITESPACE)
                assert same, f"{block}\nshould print\n{wanted}\nand prints\n{got}"


def scripts() -> list[Script]:
    """Give all scripts of all pages."""
    return [script for page in PAGES for script in _of(page)]


def _of(page: Path) -> list[Script]:
    groups: list[list[tuple[str, str | None]]] = []
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        block, output = match.groups()
        begins = isinstance(ast.parse(block).body[0], ast.Import | ast.ImportFrom)
        if not groups or (begins and _WHOLE not in text):
            groups.append([])
        groups[-1].append((block, output))
    return [Script(page, n, *zip(*group, strict=True)) for n, group in enumerate(groups, 1)]
