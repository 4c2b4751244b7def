"""The lab is up as long as these tests run."""

import os

import pytest

from tests.cluster import lab


@pytest.fixture(scope="session")
def hosts():
    """Three hosts; give the ssh command that leads to them."""
    if "SLURM_JOB_ID" in os.environ:  # these tests run in a job, in the lab of others
        yield ""
        return
    try:
        config = lab.up()
    except lab.Unavailable as error:
        pytest.skip(f"this machine cannot be a lab: {error}")
    # For what tests start; their own configuration must not matter.
    yield f"ssh -F {os.fspath(config)}"
    lab.down()


@pytest.fixture(scope="session")
def slurm(hosts):
    """Slurm, on those hosts."""
    try:
        lab.slurm()
    except lab.Unavailable as error:
        pytest.skip(f"this machine cannot run Slurm: {error}")


@pytest.fixture(autouse=True)
def whole(hosts, request):
    """After each test the hosts are whole, and nothing of parmap's is left on them."""
    yield
    for node in lab.NODES if hosts else ():
        lab.join(node)
    # The tests of a class have one session.
    for node in lab.NODES if request.cls is None else ():
        lab.until(lambda node=node: not lab.leftovers(node), f"the end of what ran on {node}")
