"""A module of the user's as the caller has loaded it, where its file has changed since.

A worker that takes the place of one that has died imports a module when the others have long done
so; its file may have been edited meanwhile.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

from parmap.transport.modules import Source, has_changed

__all__ = ["spec_of"]


def spec_of(source: Source) -> ModuleSpec | None:
    """Return how to load a module as it was; None if its file still is the same."""
    if not has_changed(source.file, source.started):
        return None
    from importlib.util import spec_from_file_location  # 1 ms, for which no start waits

    return spec_from_file_location(source.name, source.file, loader=_Loader(source))


class _Loader(SourceFileLoader):
    """Loads a module from its source as it was."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.file)
        self._text = source.text

    def get_data(self, path: Any) -> bytes:
        return self._text if path == self.path else super().get_data(path)

    def path_stats(self, path: Any) -> Any:  # noqa: ARG002
        raise OSError("it is not the file that is loaded, nor what Python has compiled of that")
