"""Forces a collection, or a signal, at each step of a function: ``python -m tests.sweep``.

A step is an opcode (`frame.f_trace_opcodes`). Collections strike at every one, in whatever thread
runs it, and end objects whose finalizers call parmap. Signals arrive at every one, and strike where
the interpreter lets them: the trace function that sends them is written in C, so that the
handler runs in the traced function and not in its tracer.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import faulthandler
import gc
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

__all__ = ["Sweep", "points"]

GUARD = 280.0  # seconds until a sweep is taken for a deadlock
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_ENDS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
_BEGINS = {"RESUME", "MAKE_CELL", "COPY_FREE_VARS", "RETURN_GENERATOR"}
_UNSEEN = {"CACHE", "EXTENDED_ARG", "END_FOR", "END_SEND", "NOP"}

_interrupt = ctypes.pythonapi.PyErr_SetInterrupt
_interrupt.argtypes = [ctypes.py_object] * 3
_interrupt.restype = None


def points(code: CodeType) -> set[int]:
    """List the steps of a function, but for those that only an exception leads to."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    place = {step.offset: i for i, step in enumerate(steps)}
    seen: set[int] = set()
    todo = [0]
    while todo:
        i = todo.pop()
        if i in seen or i >= len(steps):
            continue
        seen.add(i)
        step = steps[i]
        if step.opcode in _JUMPS:
            todo.append(place[step.argval])
        always = step.opname.startswith("JUMP") and "IF" not in step.opname
        if step.opname not in _ENDS and not always:
            todo.append(i + 1)
    raising = _only_raising(steps, seen)
    begun = next(i for i, step in enumerate(steps) if step.opname == "RESUME")
    skipped = _UNSEEN | _BEGINS
    return {steps[i].offset for i in seen - raising if i > begun and steps[i].opname not in skipped}


def _only_raising(steps: list[dis.Instruction], seen: set[int]) -> set[int]:
    """List the steps from which there is no way but to an exception."""
    raising: set[int] = set()
    for i in sorted(seen, reverse=True):
        if steps[i].opname == "RAISE_VARARGS":
            while (
                i in seen
                and steps[i].opcode not in _JUMPS
                and steps[i].opname not in _ENDS - {"RAISE_VARARGS"}
            ):
                raising.add(i)
                if steps[i].is_jump_target:
                    break
                i -= 1
    return raising


class Sweep:
    """What strikes, where, and where it has struck.

    Parameters
    ----------
    functions : list
        Whose steps to strike at.
    strike : callable
        Called at each step, in the thread that runs it; not while it runs already.
    """

    def __init__(self, functions: list[Any], strike: Callable[[], object]) -> None:
        codes = [_code(function) for function in functions]
        self._codes = {code: code.co_qualname for code in codes}
        self._on = False
        self._strike = strike
        self._striking = threading.local()
        self.hit: dict[CodeType, set[int]] = defaultdict(set)
        self.failures: list[BaseException] = []
        self._target: tuple[CodeType, int] | None = None

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Be ready to strike in this thread and those that begin in the block."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            yield
        finally:
            self._on = False
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def striking(self) -> Iterator[None]:
        """Strike once at each step."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def signalling(
        self,
        scenario: Callable[[], object],
        checked: Callable[[], object],
        handle: Callable[[], object],
    ) -> None:
        """Run a scenario again and again, each time with a signal at the next of its steps."""
        signal.signal(signal.SIGINT, lambda *_: (sys.settrace(None), handle()))
        for code, offset in self._steps_of(scenario):
            self._target = code, offset
            sys.settrace(self._enter_to_signal)
            try:
                checked()
            except BaseException as error:
                error.add_note(f"after a signal in {self._codes[code]}, at {_line(code, offset)}")
                raise
            finally:
                sys.settrace(None)
            if self._target is None:
                self.hit[code].add(offset)

    def _steps_of(self, scenario: Callable[[], object]) -> list[tuple[CodeType, int]]:
        steps: dict[tuple[CodeType, int], None] = {}

        def step(frame: FrameType, event: str, _: object) -> Any:
            if event == "opcode":
                steps[frame.f_code, frame.f_lasti] = None
            return step

        def enter(frame: FrameType, _event: str, _: object) -> Any:
            if frame.f_code not in self._codes:
                return None
            frame.f_trace_opcodes = True
            return step

        sys.settrace(enter)
        try:
            scenario()
        finally:
            sys.settrace(None)
        return list(steps)

    def _enter_to_signal(self, frame: FrameType, _event: str, _: object) -> Any:
        if self._target is None or frame.f_code is not self._target[0]:
            return None
        frame.f_trace_opcodes = True
        return self._step_to_signal

    def _step_to_signal(self, frame: FrameType, event: str, _: object) -> Any:
        if self._target is None or event != "opcode":
            return self._step_to_signal
        steps = sorted(points(frame.f_code))
        before = [offset for offset in steps if offset < self._target[1]]
        if not before or frame.f_lasti >= before[-1]:
            self._target = None
            return _interrupt  # strikes at the very next step, from C
        return self._step_to_signal

    def _enter(self, frame: FrameType, _event: str, _: object) -> Any:
        if frame.f_code not in self._codes or getattr(self._striking, "now", False):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        # Once at each: what a finalizer submits comes through here again.
        new = frame.f_lasti not in self.hit[frame.f_code]
        if event == "opcode" and new and self._on and not getattr(self._striking, "now", False):
            self.hit[frame.f_code].add(frame.f_lasti)
            self._striking.now = True
            try:
                self._strike()
            except BaseException as error:
                self.failures.append(error)
            finally:
                self._striking.now = False
        return self._step

    def missed(self) -> dict[str, list[str]]:
        """List the steps that were not struck at, for whoever writes a scenario."""
        return {
            name: [
                f"{step.positions.lineno} {step.opname}"
                for step in dis.get_instructions(code)
                if step.offset in points(code) - self.hit[code] and step.positions
            ]
            for code, name in self._codes.items()
        }

    def report(self) -> dict[str, tuple[int, int]]:
        """Tell for each function how many of its steps were struck at, and how many there are."""
        return {
            name: (len(self.hit[code] & points(code)), len(points(code)))
            for code, name in self._codes.items()
        }


def _line(code: CodeType, offset: int) -> str:
    """Name a step, for whoever mends what it shows."""
    step = next(step for step in dis.get_instructions(code) if step.offset == offset)
    line = step.positions and step.positions.lineno
    return f"{code.co_filename}:{line}, {step.opname}"


def _code(function: Any) -> CodeType:
    function = getattr(function, "fget", None) or function
    return getattr(function, "__wrapped__", function).__code__


def garbage(*things: object) -> None:
    """Leave things to the collector, in a circle, and have it come."""
    circle: list[object] = [*things]
    circle.append(circle)
    del circle, things
    gc.collect(0)


class Finalizer:
    """Calls a function when it is collected."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call()


def guard() -> None:
    """End this process, with all stacks, if it takes too long."""
    faulthandler.dump_traceback_later(GUARD, exit=True)
