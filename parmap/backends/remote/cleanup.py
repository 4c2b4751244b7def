"""Ends what a session has in a batch system when its process ends, however that comes.

Run as a script, by its path, so that it needs nothing but the standard library. It is told of jobs
by its standard input, in lines: ``+number`` and ``-number``. At the end of the input it cancels
those that are left, and removes the session's folder.
"""

import os
import shlex
import shutil
import subprocess
import sys


def main(folder: str, lock: str, cancel: str) -> None:
    """Cancel jobs, and remove a folder, at the end of the input.

    Parameters
    ----------
    folder : str
        Where the session's credentials are.
    lock : str
        The descriptor of the folder's lock, which is held as long as jobs may be left.
    cancel : str
        The command that cancels a job.
    """
    jobs: dict[str, None] = {}
    for line in sys.stdin:
        sign, number = line[0], line[1:].strip()
        if sign == "+":
            jobs[number] = None
        else:
            jobs.pop(number, None)
    for number in jobs:
        subprocess.run([*shlex.split(cancel), number], check=False)
    os.close(int(lock))  # first: NFS keeps a file that is open
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
