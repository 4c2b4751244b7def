"""Every block of Python in the README and on the pages runs, and prints what they say."""

from __future__ import annotations

import re

import pytest

from tests.pages import PAGES, ROOT, scripts


@pytest.mark.parametrize("script", [s for s in scripts() if not s.on_a_cluster], ids=str)
def test_code_runs_as_a_script(script, tmp_path):
    for package in sorted(script.packages):
        pytest.importorskip(package)
    script.run(tmp_path)


def test_no_code_is_left_out():
    # Blocks that are no Python, or nobody's, name what they are: sh, r, text, toml.
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        kinds = set(re.findall(r"^ *`{3,}([^`\n]*)$", text, re.MULTILINE)) - {""}
        known = {"python", "sh", "r", "text", "toml", "svg"}
        assert {kind for kind in kinds if kind[0] != "{"} <= known, page


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target
            made = "made/" in target  # pictures, when the pages are built
            assert made or path.exists(), f"{page.relative_to(ROOT)}: {target}"
