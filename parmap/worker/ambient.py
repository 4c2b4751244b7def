"""What a script has set, applied around each chunk of its calls.

A task sees the script's settings, as a loop would. Each `Setting` knows how to read one and how to
apply it; `parmap.engine.script_settings` reads them when a call begins. A setting that is as in a
new interpreter is not sent, so a worker keeps what its ``setup=`` has set. After a chunk the worker
has its own settings again.

Three settings have many parts, and files of their own: the variables of the environment, the
filters of warnings, and the levels of loggers. Of the first and the last, only what changed is
sent.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from parmap.errors import said
from parmap.transport.caller import Caller, Unapplied
from parmap.transport.functions import load_cloudpickle

__all__ = ["GROUP", "SETTINGS", "WATCHED", "Applied", "Setting", "in_context", "reset"]

R = TypeVar("R")

# The group of entry points by which packages offer settings.
GROUP = "parmap.settings"


class Setting(NamedTuple):
    """How to read a setting of a library in the script, and to apply it around its tasks.

    A package offers one by an entry point of the group ``parmap.settings``, whose name is what
    warnings call the setting. It must be installed where the workers run, too.

    Parameters
    ----------
    module : str
        The library. Where the script has not loaded this module, the setting is not read.
    read : callable
        Return the value. Called when a call begins, it must be quick: a microsecond at most.
    apply : callable
        Set a value that `read` has returned: the script's before a chunk, the worker's own after
        it.
    usual : object, default None
        The value in a new interpreter. Such a value is not sent.
    per_thread : bool, default False
        Whether each thread, or each context, has a value of its own. Others are the process's: they
        are applied only in processes that run one task at a time, for parmap alone.

    Examples
    --------
    In ``mylib.py``, with ``entry-points."parmap.settings"`` of ``mylib = "mylib:SETTING"`` in the
    ``pyproject.toml`` of the package:

    >>> import parmap
    >>> options = {"precision": "double"}
    >>> def read():
    ...     return options["precision"]
    >>> def apply(value):
    ...     options["precision"] = value
    >>> SETTING = parmap.Setting("mylib", read, apply, usual="double")
    """

    module: str
    read: Callable[[], Any]
    apply: Callable[[Any], object]
    usual: Any = None
    per_thread: bool = False


_NUMPY = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def _numpy() -> Any:
    np = sys.modules["numpy"]  # an import costs a call as much as the rest
    modes = np.geterr()
    if modes == _NUMPY:
        return None
    call = np.geterrcall() if not {"call", "log"}.isdisjoint(modes.values()) else None
    return modes, call


def _set_numpy(value: Any) -> None:
    import numpy as np

    modes, call = value or (_NUMPY, None)
    np.seterr(**modes)
    if call is not None:
        np.seterrcall(call)


def _decimal() -> Any:
    decimal = sys.modules["decimal"]
    state: Any = decimal.getcontext().__reduce__()[1]
    numbers, traps = state[:_TRAPS_AT], state[-1]  # between them, what has happened: no setting
    usual = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
    return None if numbers == _DECIMAL and traps == usual else (numbers, traps)


# Precision, rounding, least and largest exponent, capitals, clamp.
_DECIMAL = (28, "ROUND_HALF_EVEN", -999999, 999999, 1, 0)
_TRAPS_AT = len(_DECIMAL)


def _set_decimal(value: Any) -> None:
    import decimal

    usual = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
    numbers, traps = value or (_DECIMAL, usual)
    made: Any = decimal.Context  # its last arguments are not known to all type checkers
    decimal.setcontext(made(*numbers, [], traps))


def _sklearn() -> Any:
    sklearn = sys.modules["sklearn"]
    config = sklearn.get_config()
    usual = sklearn._config._global_config  # noqa: SLF001 - each thread's begins as a copy of it
    if config == usual:
        return None
    return {name: value for name, value in config.items() if value != usual.get(name)}


def _set_sklearn(value: Any) -> None:
    sklearn = importlib.import_module("sklearn")
    sklearn.set_config(**{**sklearn._config._global_config, **(value or {})})  # noqa: SLF001


def _set_default_dtype(name: str) -> None:
    import torch

    torch.set_default_dtype(getattr(torch, name))


def _default_dtype() -> str:
    return str(sys.modules["torch"].get_default_dtype()).removeprefix("torch.")


def _grad_mode() -> bool:
    return bool(sys.modules["torch"].is_grad_enabled())


def _set_grad_mode(value: bool) -> None:  # noqa: FBT001 - as `Setting.apply`
    import torch

    torch.set_grad_enabled(value)


def _x64() -> bool:
    return bool(sys.modules["jax"].config.jax_enable_x64)


def _set_x64(value: bool) -> None:  # noqa: FBT001 - as above
    importlib.import_module("jax").config.update("jax_enable_x64", value)


SETTINGS = {
    "decimal context": Setting("decimal", _decimal, _set_decimal, per_thread=True),
    "NumPy error handling": Setting("numpy", _numpy, _set_numpy, per_thread=True),
    "scikit-learn configuration": Setting("sklearn", _sklearn, _set_sklearn, per_thread=True),
    "torch default dtype": Setting("torch", _default_dtype, _set_default_dtype, "float32"),
    "torch gradient mode": Setting("torch", _grad_mode, _set_grad_mode, True, per_thread=True),
    "JAX x64 mode": Setting("jax", _x64, _set_x64, False),
    # The last: it may leave little room for all else.
    "recursion limit": Setting("sys", sys.getrecursionlimit, sys.setrecursionlimit, 1000),
}

# Those with many parts, by their files, which are loaded where something is set.
WATCHED = {
    "current directory": "parmap.worker.directory",
    "environment variables": "parmap.worker.environment",
    "levels of loggers": "parmap.worker.log_levels",
    "warning filters": "parmap.worker.warning_filters",
}


class _Carrier(Protocol):
    """How a setting is applied in a worker: a `_Simple`, or the file of one with many parts."""

    PER_THREAD: bool

    def differs(self, value: Any) -> bool:
        """Tell whether it is otherwise here."""

    def saved(self, value: Any) -> Callable[[], object]:
        """Return a function that sets what `apply` is about to change to what it is now."""

    def apply(self, value: Any) -> object:
        """Set it."""


class _Simple:
    """A `Setting`, in a worker; its values come pickled."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self.PER_THREAD = setting, setting.per_thread
        importlib.import_module(setting.module)

    def differs(self, value: bytes) -> bool:
        return bool(self._setting.read() != pickle.loads(value))

    def saved(self, value: bytes) -> Callable[[], object]:  # noqa: ARG002 - see `_Carrier`
        return functools.partial(self._setting.apply, self._setting.read())

    def apply(self, value: bytes) -> object:
        return self._setting.apply(pickle.loads(value))


@functools.cache
def _carrier(name: str) -> _Carrier:
    if name in WATCHED:
        found: Any = importlib.import_module(WATCHED[name])
        return found  # type: ignore[no-any-return]
    if name in SETTINGS:
        return _Simple(SETTINGS[name])
    from importlib.metadata import entry_points

    (point,) = entry_points(group=GROUP, name=name)
    return _Simple(point.load())


class Applied:
    """Applies a caller's settings for a block, where they differ; gives those that it could not.

    Parameters
    ----------
    caller : Caller
        What the call brings along.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._unapplied: list[Unapplied] = []

    def __enter__(self) -> list[Unapplied]:
        if self._caller.settings[-1][0] == "warning filters":
            # Under them, a warning of what these import would be an error.
            importlib.import_module("parmap.transport.error_payload")
            load_cloudpickle()
        try:
            for name, value in self._caller.settings:
                self._begin(name, value)
        except BaseException:  # Ctrl-C, for one
            self._restore()
            raise
        return self._unapplied

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _begin(self, name: str, value: Any) -> None:
        try:
            carrier = _carrier(name)
            if not carrier.differs(value):
                return
            if not (carrier.PER_THREAD or self._caller.exclusive):
                self._unapplied.append(Unapplied(name, _SHARED))
                return
            self._undo.append((name, carrier.saved(value)))
            carrier.apply(value)
        except ImportError as error:
            if name not in SETTINGS:  # a library that is not here is in no task's way
                self._unapplied.append(Unapplied(name, f"in a worker, {said(error)}"))
        except Exception as error:  # noqa: BLE001 - whatever another package's function may raise
            why = f"in a worker, {type(error).__name__}: {said(error)}"
            self._unapplied.append(Unapplied(name, why))

    def _restore(self) -> None:
        try:
            while self._undo:
                self._restore_last()
        except KeyboardInterrupt:  # a task is interrupted once
            self._restore()
            raise

    def _restore_last(self) -> None:
        name, undo = self._undo[-1]
        try:
            undo()  # first: Ctrl-C may strike in the middle, and then it runs again
        except Exception as error:  # noqa: BLE001 - as above
            why = f"to restore a worker's own raised {type(error).__name__}: {said(error)}"
            self._unapplied.append(Unapplied(name, why))
        del self._undo[-1]


def reset() -> None:
    """Have all settings as in a new interpreter: those that differ in a caller are sent by it.

    For a worker that is a fork of its caller, and so has inherited what was set there by then.
    """
    for setting in SETTINGS.values():
        if setting.module in sys.modules and setting.read() != setting.usual:
            setting.apply(setting.usual)
    for file in WATCHED.values():
        importlib.import_module(file).reset()


_SHARED = "its workers may run several tasks in one process, or serve others than parmap"


def in_context(caller: Caller, work: Callable[..., R], *args: Any) -> R:
    """Call a function in a copy of the caller's context, or in one with its context variables."""
    if caller.context is not None:
        return caller.context.copy().run(work, *args)
    context = contextvars.copy_context()
    if caller.variables is not None:
        context.run(caller.variables.apply)
    return context.run(work, *args)


Setting.__module__ = "parmap"  # public: tracebacks and the docs name it as users do
