"""Keys under which workers keep what scripts send them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import parmap
from parmap.transport.identity import fresh_key

# Containers look like this: one host name, one process number, and each script counts anew.
SCRIPT = """
import _socket, os
os.getpid = lambda: 1
_socket.gethostname = lambda: "worker"
import parmap
from parmap.backends.joblib.plan import _setup
from parmap.transport.identity import fresh_key
from parmap.transport.messages import cached_payload
for key in (
    fresh_key(),
    cached_payload(abs).key,
    parmap.share(1).key,
    _setup(print, threads=False).args[0].key,
):
    print(key[0].hex(), key[1])
"""


def keys():
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout
    return out.splitlines()


def test_two_scripts_with_one_name_and_number_give_no_key_twice():
    first, second = keys(), keys()
    assert len({*first, *second}) == 8


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_draws_a_token_of_its_own():
    before = fresh_key()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, fresh_key()[0])
        os._exit(0)
    os.waitpid(pid, 0)
    token = os.read(ours, 100)
    os.close(ours)
    os.close(theirs)
    assert len(token) == len(before[0]) == 16
    assert token != before[0]
    assert fresh_key()[0] == before[0]


def test_threads_share_no_count():
    with ThreadPoolExecutor(2) as threads:
        met = threading.Barrier(2)
        keys = list(threads.map(lambda _: (met.wait(), fresh_key())[1], range(2)))
    assert keys[0][0] != keys[1][0]
    assert fresh_key()[0] not in {key[0] for key in keys}


def test_handles_have_keys_of_their_own():
    one, other = parmap.share([1]), parmap.share([1])
    assert one.key != other.key
