"""The lab is up as long as these tests run."""

import os

import pytest

from tests.cluster import lab


@pytest.fixture(scope="session")
def hosts():
    """Three hosts; give the ssh command that leads to them."""
    try:
        config = lab.up()
    except lab.Unavailable as error:
        pytest.skip(f"this machine cannot be a lab: {error}")
    # For what tests start; their own configuration must not matter.
    yield f"ssh -F {os.fspath(config)}"
    lab.down()


@pytest.fixture(autouse=True)
def whole(hosts, request):
    """After each test the hosts are whole, and nothing of parmap's is left on them."""
    yield
    for node in lab.NODES:
        lab.join(node)
    # The tests of a class have one session.
    for node in lab.NODES if request.cls is None else ():
        lab.until(lambda node=node: not lab.leftovers(node), f"the end of what ran on {node}")
