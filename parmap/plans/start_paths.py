"""Where a session's workers began, and where the script is now."""

from __future__ import annotations

import sys

from parmap.transport.caller import Caller
from parmap.transport.import_path import Added, added_since
from parmap.transport.messages import CallSpec
from parmap.worker import directory

__all__ = ["StartPaths"]


class StartPaths:
    """The directory and the import path of the script as its workers began, which have both.

    For places whose executors do not bring them with each task.
    """

    def __init__(self) -> None:
        self._path: list[object] = list(sys.path)
        self._directory, self._moved = directory.here(), False

    def added(self) -> Added | None:
        """Give what was added to the import path since."""
        return added_since(self._path)

    def followed(self, spec: CallSpec) -> CallSpec:
        """Have a call's tasks run in the directory that the script is in now."""
        now = directory.here()
        if now is None or (now == self._directory and not self._moved):
            return spec
        # Also if it comes back: a worker may have begun meanwhile.
        self._moved = True
        caller = spec.caller or Caller(exclusive=True)
        settings = (("current directory", now), *caller.settings)
        return spec._replace(caller=caller._replace(settings=settings))
