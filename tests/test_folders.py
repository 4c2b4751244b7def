"""The folders of sessions in batch systems, and the process that removes them."""

import os
import select
import signal
import socket
import stat

import pytest

from parmap.backends.remote import folders

GUARD = 60  # against hangs; never waited for when all is well


def test_a_folder_is_the_users_own(tmp_path):
    own, lock = folders.private(tmp_path / "deep" / "parent")
    os.close(lock)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert own.name.startswith(f"{socket.gethostname()}-")


def test_nobody_removes_the_folder_of_a_session_that_lives(tmp_path):
    own, lock = folders.private(tmp_path)
    other, others = folders.private(tmp_path)
    os.close(others)
    folders.sweep(tmp_path)
    assert own.exists()
    assert not other.exists()
    os.close(lock)
    folders.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_another_machines_is_left(tmp_path):
    own, lock = folders.private(tmp_path)
    os.close(lock)
    foreign = own.rename(tmp_path / "elsewhere-0123")
    unlocked = tmp_path / f"{socket.gethostname()}-0123"
    unlocked.mkdir()
    folders.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {foreign, unlocked}


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="asks Linux for a process's end")
@pytest.mark.parametrize("forks", [False, True])
def test_jobs_and_files_are_cleaned_up_after_a_killed_session(start, tmp_path, forks):
    parent = tmp_path / "parent"
    script = start(
        f"""
        import os, pathlib, time
        from parmap.backends.remote import folders
        from parmap.backends.remote.cleanup_process import CleanupProcess
        own, lock = folders.private(pathlib.Path({os.fspath(parent)!r}))
        cleanup = CleanupProcess(own, lock, "touch")
        cleanup.add("one")
        cleanup.add("other")
        cleanup.remove("one")
        if {forks} and os.fork() == 0:
            # It has all of the session's descriptors, closes its objects, and lives on.
            cleanup.close()
        else:
            print(cleanup._process.pid, flush=True)
        time.sleep(3600)
        """
    )
    cleanup = os.pidfd_open(int(script.line()))
    folders.sweep(parent)
    (own,) = parent.iterdir()
    os.kill(script.process.pid, signal.SIGKILL)
    assert select.select([cleanup], [], [], GUARD)[0]
    os.close(cleanup)
    assert not own.exists()
    assert (tmp_path / "other").exists()  # cancelled
    assert not (tmp_path / "one").exists()
