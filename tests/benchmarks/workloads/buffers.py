"""One buffer to another process and back, by the ways that plan processes could take.

The limits in ``parmap/backends/processes`` come from here: up to what size a socket is best.
"""

import mmap
import os
import socket
import statistics
import time
from collections import deque

import numpy as np

from tests.benchmarks.workload import Case, Sample, Workload


def receive(channel, into):
    """Fill a buffer from a socket, and look at all of it."""
    rest = into
    while rest.nbytes:
        rest = rest[channel.recv_into(rest) :]
    np.frombuffer(into, np.uint8).max()
    return into


def by_memfd(channel, data):
    """Write a buffer into memory without a name, and send that."""
    from parmap.backends.processes.shared_memory import Block

    block = Block([data])
    socket.send_fds(channel, [b"x"], [block.descriptor])


def from_memfd(channel, size):
    """Map what was sent, and look at all of it."""
    from parmap.backends.processes.shared_memory import mapped

    _, (descriptor,), _, _ = socket.recv_fds(channel, 1, 1)
    (data,) = mapped(descriptor, [size])
    np.frombuffer(data, np.uint8).max()
    return data


def by_socket(channel, data):
    channel.sendall(data)


def huge(size):
    from parmap.backends.processes.system_unix import fresh_memory

    return memoryview(fresh_memory(size))


WAYS = {
    "socket, huge pages": (by_socket, lambda c, size: receive(c, huge(size))),
    "socket, bytearray": (by_socket, lambda c, size: receive(c, memoryview(bytearray(size)))),
    "memfd": (by_memfd, from_memfd),
}


def cases(quick):
    sizes = (2**16, 2**22) if quick else (2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)
    return [
        Case(
            *(f"{way} {size}", f"{label(size)} {way}", size, tuple(WAYS)),
            reference="socket, bytearray",
            data=way,
        )
        for size in sizes
        for way in ("there", "back")
    ]


def label(size):
    return f"{size >> 20} MiB" if size >= 2**20 else f"{size >> 10} KiB"


def trial(case, name):
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            serve(theirs, case.size, *WAYS[name])
        finally:
            os._exit(0)
    theirs.close()
    data = memoryview(mmap.mmap(-1, case.size))
    data[:] = bytes([1]) * case.size
    # As results are: what is freed at once gives its pages to the next. A gigabyte at most.
    kept = deque(maxlen=2**30 // case.size)
    try:
        yield None
        while True:
            times = max(1, min(10, 2**26 // case.size))
            trips = [trip(ours, data, kept, *WAYS[name]) for _ in range(times)]
            there, back = map(statistics.median, zip(*trips, strict=True))
            yield Sample(there if case.data == "there" else back)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def trip(channel, data, kept, send, get):
    """Send a buffer and get one; give the seconds of each."""
    channel.sendall(b"x")
    channel.recv(1)  # it listens
    began = time.perf_counter()
    send(channel, data)
    channel.recv(1)
    there = time.perf_counter() - began
    began = time.perf_counter()
    channel.sendall(b"x")
    kept.append(get(channel, data.nbytes))
    back = time.perf_counter() - began
    assert kept[-1][-1] == ord("x")
    return there, back


def serve(channel, size, send, get):
    """Be the other end."""
    data = memoryview(bytearray(b"x") * size)
    while channel.recv(1):
        channel.sendall(b"x")
        get(channel, size)
        channel.sendall(b"x")
        channel.recv(1)
        send(channel, data)


WORKLOAD = Workload(
    name="buffers",
    title="one buffer to another process",
    what="One buffer from this process to another one, which lets go of it as a worker does of an "
    "argument, and back to this one, which keeps it as a caller does a result.",
    cases=cases,
    trial=trial,
)
