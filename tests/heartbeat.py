"""Run a command, and say every few seconds that it still runs, as long as it writes nothing.

``python tests/heartbeat.py COMMAND ARGUMENT...``; the variable ``HEARTBEAT`` sets the seconds.

pip installs packages for half a minute without a word, and a test may take as long. Where the
output does not go to a terminal, each state of a progress bar becomes a line.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time

# A process that the command left behind may hold the pipe open: nothing more is expected when it is
# silent for so many seconds after the command's end.
GRACE = 3


def main(command, every):
    """Run the command; return its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Ctrl-C reaches the command, too: stay until it has ended, and pass on what it still says.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    chunks = queue.SimpleQueue()
    threading.Thread(target=read, args=(process.stdout, chunks), daemon=True).start()
    show(process, chunks, every)
    code = process.wait()
    return code if code >= 0 else 128 - code


def read(output, chunks):
    """Queue what the command writes, at once; b"" at its end."""
    data = b"begin"
    while data:
        data = os.read(output.fileno(), 1 << 16)
        chunks.put(data)


def show(process, chunks, every):
    """Write what is queued; where nothing comes for so many seconds, say that the command runs."""
    began, line_ended = time.monotonic(), True
    while (data := received(process, chunks, every)) != b"":
        if data is None:
            text = f"... still running after {time.monotonic() - began:.0f} s\n".encode()
            data = text if line_ended else b"\n" + text
        elif not sys.stdout.isatty():
            data = data.replace(b"\r", b"\n")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        line_ended = data.endswith(b"\n")


def received(process, chunks, every):
    """Return what the command wrote; None if it is silent for so long, b"" at its end."""
    ended = process.poll() is not None
    try:
        return chunks.get(timeout=GRACE if ended else every)
    except queue.Empty:
        return b"" if ended else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], float(os.environ.get("HEARTBEAT", "3"))))
