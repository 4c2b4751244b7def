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
import functools
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

import parmap

__all__ = ["Sweep", "points", "swept"]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(parmap.__file__)))

GUARD = 280.0  # seconds until a sweep is taken for a deadlock
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_ENDS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
_BEGINS = {"RESUME", "MAKE_CELL", "COPY_FREE_VARS", "RETURN_GENERATOR"}
_UNSEEN = {"CACHE", "EXTENDED_ARG", "END_FOR", "END_SEND", "NOP"}

_interrupt = ctypes.pythonapi.PyErr_SetInterrupt
_interrupt.argtypes = [ctypes.py_object] * 3
_interrupt.restype = None
_nothing = ctypes.pythonapi.PyThreadState_Get  # any function that does nothing
_nothing.argtypes = [ctypes.py_object] * 3
_nothing.restype = None


@functools.cache
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


class _Step(NamedTuple):
    """A step that a scenario came to, in a call; and which step of that call came before.

    `after` is its offset, or None where the function begins, or goes on after a `yield`, and
    how often it had come then.
    """

    code: CodeType
    offset: int
    call: object
    after: tuple[int | None, int]

    def line(self) -> str:
        """Name it, for whoever mends what it shows."""
        step = next(s for s in dis.get_instructions(self.code) if s.offset == self.offset)
        line = step.positions and step.positions.lineno
        return f"{self.code.co_filename}:{line}, {step.opname}"


class _Trace:
    """The steps of one run of a scenario, in the thread that runs it."""

    def __init__(self, codes: Container[CodeType], scenario: Callable[[], object]) -> None:
        self.steps: list[_Step] = []
        self._codes = codes
        self._came: Counter[tuple[CodeType, int | None]] = Counter()
        sys.settrace(self._enter)
        try:
            scenario()
        finally:
            sys.settrace(None)

    def until(self, first: int, places: list[tuple[CodeType, int]]) -> list[_Step]:
        """List the steps from one on, of its call, to where its signal was handled."""
        call = self.steps[first].call
        steps = [*itertools.takewhile(lambda step: step.call is call, self.steps[first:])]
        for i, step in enumerate(steps):
            if (step.code, step.offset) in places:
                return steps[: i + 1]
        return steps  # elsewhere, later

    def _enter(self, frame: FrameType, _event: str, _: object) -> Any:
        code = frame.f_code
        if code not in self._codes:
            return None
        frame.f_trace_opcodes = True
        call = object()
        after = self._after(code, None)

        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal after
            if event == "opcode":
                self.steps.append(_Step(code, frame.f_lasti, call, after))
                after = self._after(code, frame.f_lasti)
            return step

        return step

    def _after(self, code: CodeType, offset: int | None) -> tuple[int | None, int]:
        self._came[code, offset] += 1
        return offset, self._came[code, offset]


def _places(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    while frame is not None:
        # In a call, `f_lasti` is that of the last of the instruction's caches.
        begun = [step for step in _offsets(frame.f_code) if step <= frame.f_lasti]
        yield frame.f_code, max(begun, default=0)
        frame = frame.f_back


@functools.cache
def _offsets(code: CodeType) -> list[int]:
    return [step.offset for step in dis.get_instructions(code)]


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
        self._awaited: _Step
        self._left = 0  # how often the step before it is still to come
        self._struck: list[tuple[CodeType, int]] | None = None

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Be ready to strike in this thread and those that begin in the block."""
        sys._getframe().f_trace_opcodes = True  # else Python 3.12 traces none until the next call
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
        """Run a scenario again and again, until a signal has arrived at each of its steps.

        The interpreter calls handlers only after calls and at jumps back. Signals that arrive at
        any of the steps since the last such place are handled at the same one: a run for each
        place is enough.
        """
        checked()  # what happens the first time only is not to be traced
        trace = _Trace(self._codes, scenario)
        tracer = self._enter_to_signal  # kept: the interpreter lets go of it while it runs

        def struck(_: int, frame: FrameType | None) -> None:
            sys.settrace(None)
            self._struck = [*_places(frame)]
            handle()

        signal.signal(signal.SIGINT, struck)
        for i, step in enumerate(trace.steps):
            if step.offset in self.hit[step.code]:
                continue
            self._struck, self._awaited, self._left = None, step, step.after[1]
            sys.settrace(tracer)
            try:
                checked()
            except BaseException as error:
                error.add_note(f"after a signal in {self._codes[step.code]}, at {step.line()}")
                raise
            finally:
                sys.settrace(None)
            if self._struck is not None:
                for one in trace.until(i, self._struck):
                    self.hit[one.code].add(one.offset)

    def _enter_to_signal(self, frame: FrameType, _event: str, _: object) -> Any:
        if self._left == 0 or frame.f_code is not self._awaited.code:
            return None
        frame.f_trace_opcodes = True
        return self._come(None) or self._step_to_signal

    def _step_to_signal(self, frame: FrameType, event: str, _: object) -> Any:
        if self._left == 0 or event != "opcode":
            return self._step_to_signal
        return self._come(frame.f_lasti) or self._step_to_signal

    def _come(self, offset: int | None) -> Any:
        """Send the signal if this is the step before the one that is awaited."""
        if offset != self._awaited.after[0]:
            return None
        self._left -= 1
        if self._left:
            return None
        # Else the handler would run in the tracer where that step calls a function.
        sys.settrace(_nothing)
        return _interrupt  # strikes at the very next step, from C

    def _enter(self, frame: FrameType, _event: str, _: object) -> Any:
        code = frame.f_code
        if code not in self._codes or getattr(self._striking, "now", False):
            return None
        if self.hit[code] >= points(code):  # to trace its steps once more would only take time
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


# From Python 3.12 on some instructions are not traced, so fewer steps can be struck at.
one_python = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="steps are counted as Python 3.11 traces them"
)


def swept(section: str, kind: str) -> dict[str, list[int]]:
    """Sweep in a process of its own, which ends with all stacks if it takes too long."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sections", section, kind],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    hits: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    assert hits
    print(section, kind, hits)
    return hits


def guard() -> None:
    """End this process, with all stacks, if it takes too long."""
    faulthandler.dump_traceback_later(GUARD, exit=True)
