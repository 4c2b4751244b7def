"""Whether this installation is whole.

An unrelated project called ``parmap`` installs files into the same folder. Whichever is installed
last replaces ``__init__.py``; uninstalling the other project deletes it. So this file uses nothing
from ``parmap/__init__.py``.
"""

from __future__ import annotations

import os
from importlib import import_module, metadata

__all__ = ["damage", "neighbour"]

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_REPAIR = (
    "install parmap-plans again: pip install --force-reinstall --no-deps parmap-plans (or the "
    "path of your clone of it)"
)


def damage() -> str:
    """Say why parmap does not work here, and how to repair it; empty if it works."""
    package = vars(import_module("parmap"))
    if "_HOMES" in package:
        return ""
    file = os.path.join(_FOLDER, "__init__.py")
    if package.get("__file__"):
        what = f"{file} belongs to the unrelated project parmap {_version() or ''}".rstrip()
        return f"{what}. Uninstall that project (pip uninstall parmap), then {_REPAIR}"
    return (
        f"{file} is missing. The unrelated project parmap has a file of the same name, and "
        f"uninstalling that project deletes ours. To repair parmap, {_REPAIR}"
    )


def neighbour() -> str:
    """Say that the unrelated project is installed in the same folder; empty if it is not."""
    version = _version()
    if not version:
        return ""
    return (
        f"the unrelated project parmap {version} is installed in the same folder, {_FOLDER}. "
        f"Uninstalling it deletes a file of ours: after `pip uninstall parmap`, {_REPAIR}"
    )


def _version() -> str:
    """Give the version of the unrelated project in this folder; empty if it is elsewhere."""
    try:
        other = metadata.distribution("parmap")
    except metadata.PackageNotFoundError:
        return ""
    here = os.path.realpath(_FOLDER) == os.path.realpath(str(other.locate_file("parmap")))
    return other.version if here else ""
