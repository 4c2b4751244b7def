"""The code of the pages on clusters runs, as it stands there, on real hosts and a real Slurm."""

from __future__ import annotations

import os

import pytest

from tests.pages import scripts

pytest.importorskip("dask_jobqueue")


@pytest.mark.parametrize("script", [s for s in scripts() if s.on_a_cluster], ids=str)
@pytest.mark.usefixtures("slurm")
def test_code_runs_as_a_script(script, hosts, tmp_path):
    # As in a user's configuration, so that "ssh" alone leads to the hosts.
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/{hosts} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    script.run(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
