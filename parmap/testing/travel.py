"""What travels to and from the workers."""

# ruff: noqa: PLR2004 - tests compare results with the numbers that they should be

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import parmap
from parmap.testing.material import LONG, Contract, functions

__all__ = ["TravelContract"]


class _Trap:
    """Can be pickled, but not read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_spring, ())


def _spring() -> NoReturn:
    raise ValueError("sprung")


_COUNTER = """
def increase(n):
    global count
    count += n
    return count

def look():
    return count
"""


def _fill(shared: Any, lock: Any, x: int) -> Any:
    with lock:
        shared[x] = x * x
        return shared[x]


_OPENED: dict[str, Callable[[Path], Any]] = {
    "text": Path.open,
    "text to read and write": lambda path: path.open("r+"),
    "bytes": lambda path: path.open("rb"),
    "unbuffered": lambda path: path.open("rb", buffering=0),
    "temporary": lambda path: _filled(tempfile.NamedTemporaryFile, "w+", path),
    "spooled": lambda path: _filled(tempfile.SpooledTemporaryFile, "w+b", path),
}


def _filled(make: Callable[..., Any], mode: str, path: Path) -> Any:
    file = make(mode=mode)
    file.write(path.read_bytes() if "b" in mode else path.read_text())
    file.flush()
    return file


def _line_of(file: Any, _: object = None) -> str:
    line = file.readline()
    return line.decode().strip() if isinstance(line, bytes) else str(line).strip()


def _is_standard_output(stream: Any) -> bool:
    return stream is sys.__stdout__


class TravelContract(Contract):
    """Any function can be sent; what cannot travel is named."""

    @pytest.mark.parametrize("kind", list(functions()))
    def test_functions_of_every_kind(self, kind: str) -> None:
        """A function of any kind gives what it gives here."""
        fn = functions()[kind]
        assert parmap.pmap(fn, range(5), chunks=2) == [0, 3, 6, 9, 12]
        assert parmap.submit(fn, 4).result(LONG) == 12

    def test_all_that_a_function_has(self) -> None:
        """Defaults, attributes, cells that are empty or hold each other, a module as a global."""

        def even(n: int, *, step: int = 1) -> bool:
            return n == 0 or odd(n - step)

        def odd(n: int, *, step: int = 1) -> bool:
            return n != 0 and even(n - step)

        def seen(n: int, by: str = "by default", *, mark: str = "by name") -> tuple[Any, ...]:
            """Say what is there."""
            try:
                cell = late
            except NameError:
                cell = "empty"
            own = (seen.__doc__, seen.__name__, vars(seen), seen.__kwdefaults__)
            return by, mark, cell, even(n), os.path.join("a", str(n)), *own

        vars(seen)["note"] = "an attribute"
        expected = [seen(n) for n in range(3)]
        assert expected[0][2:4] == ("empty", True)
        assert parmap.pmap(seen, range(3)) == expected
        assert parmap.submit(seen, 2).result(LONG) == expected[2]
        if len(expected) != 3:  # never: the cell stays empty
            late = "filled"

    def test_functions_of_one_file_share_its_globals(self) -> None:
        """What one of them sets, another finds, within one task."""
        script: dict[str, Any] = {"__name__": "__main__", "count": 0}
        exec(_COUNTER, script)  # noqa: S102
        increase, look = script["increase"], script["look"]
        assert parmap.pmap(lambda n: [increase(n), look()], [5]) == [[5, 5]]

    def test_an_argument_that_cannot_travel(self) -> None:
        """A lock as an element fails alone, and the error names it; in one memory it is fine."""
        given_ = [1, threading.Lock(), 3]
        results: list[Any] = parmap.pmap(
            lambda x: type(x).__name__, given_, errors="return", chunks=3
        )
        assert [results[0], results[2]] == ["int", "int"]
        if self.shares_memory():
            assert results[1] == "lock"
            return
        assert results[1].index == 1
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "_thread.lock" in str(results[1].error)
        with pytest.raises(parmap.SerializationError, match=r"_thread\.lock"):
            parmap.submit(repr, threading.Lock()).result(LONG)

    def test_a_function_that_cannot_travel(self) -> None:
        """The error names the path to what the function holds; in one memory it is fine."""
        lock = threading.Lock()

        def fn(x: int) -> int:
            with lock:
                return x

        if self.shares_memory():
            assert parmap.pmap(fn, range(3)) == [0, 1, 2]
            return
        with pytest.raises(parmap.SerializationError, match=r"fn\.__closure__\['lock'\]"):
            parmap.pmap(fn, range(3))
        with pytest.raises(parmap.SerializationError, match=r"fn\.__closure__\['lock'\]"):
            parmap.submit(fn, 1).result(LONG)

    def test_a_result_that_cannot_travel(self) -> None:
        """A result that holds a lock fails alone, and the error names the path to it."""

        def fn(x: int) -> Any:
            return {"held": [threading.Lock()]} if x == 1 else x

        results: list[Any] = parmap.pmap(fn, range(3), errors="return", chunks=3)
        assert [results[0], results[2]] == [0, 2]
        if self.shares_memory():
            assert "held" in results[1]
            return
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "result['held'][0]" in str(results[1].error)
        with pytest.raises(parmap.SerializationError, match="result"):
            parmap.submit(fn, 1).result(LONG)

    @pytest.mark.parametrize("kind", list(_OPENED))
    def test_an_open_file_is_refused_wherever_it_stands(self, kind: str, tmp_path: Path) -> None:
        """Tasks read on in the caller's own file, or do not run at all: none reads a copy."""
        path = tmp_path / "lines"
        path.write_text("".join(f"{i}\n" for i in range(9)))
        with _OPENED[kind](path) as file:
            read = functools.partial(_line_of, file)
            calls: list[Callable[[], list[str]]] = [
                lambda: parmap.pmap(lambda _: _line_of(file), range(3), chunks=1),
                lambda: parmap.pmap(read, range(3), chunks=1),
                lambda: parmap.pmap(_line_of, [file] * 3, chunks=1),
                lambda: parmap.starmap(_line_of, [(file, i) for i in range(3)], chunks=1),
                lambda: parmap.pmap(lambda one: _line_of(one["at"][0]), [{"at": [file]}] * 3),
                lambda: [parmap.submit(_line_of, file).result(LONG) for _ in range(3)],
                lambda: parmap.compute([parmap.delayed(_line_of)(file) for _ in range(3)]),
            ]
            for call in calls:
                file.seek(0)
                if self.shares_memory():
                    lines = call()  # of threads that read at once, a text file may skip some
                    assert lines == ["0", "1", "2"] or self.session.workers > 1
                    continue
                with pytest.raises(parmap.SerializationError, match="open it inside the function"):
                    call()
                assert _line_of(file) == "0"  # and the caller's has not moved

    # The task leaves its file open, perhaps in this process.
    @pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
    def test_a_result_that_is_an_open_file(self, tmp_path: Path) -> None:
        """A task cannot return its open file from another process, and nothing stands for it."""
        self.need_same_host()
        path = tmp_path / "lines"
        path.write_text("some")
        results: list[Any] = parmap.pmap(
            lambda i: path.open() if i == 1 else i, range(3), errors="return", chunks=3
        )
        assert [results[0], results[2]] == [0, 2]
        if self.shares_memory():
            with results[1]:
                assert (results[1].name, results[1].read()) == (os.fspath(path), "some")
            return
        assert isinstance(results[1].error, parmap.SerializationError)

    def test_the_end_of_a_pipe_is_refused_both_ways(self) -> None:
        """Only the number of its file descriptor would travel, which is another file there."""
        here, there = multiprocessing.Pipe()
        with here, there:
            if self.shares_memory():
                assert parmap.pmap(lambda _: there.send(1), [0]) == [None]
            else:
                with pytest.raises(parmap.SerializationError, match=r"\['there'\]"):
                    parmap.pmap(lambda _: there.send(1), [0])
                with pytest.raises(parmap.SerializationError, match=r"result\[0\]"):
                    parmap.pmap(lambda _: multiprocessing.Pipe(), [0])
                there.send(1)
            assert here.recv() == 1

    def test_the_standard_streams_travel_by_name(self) -> None:
        """A task that is given ``sys.__stdout__`` finds the one of its process."""
        # pytest puts its own in the place of sys.stdout.
        assert parmap.pmap(_is_standard_output, [sys.__stdout__] * 2) == [True, True]

    def test_buffers_in_memory_are_data(self) -> None:
        """io.StringIO and io.BytesIO travel with their position, each time as they are here."""
        for buffer, rest in ((io.StringIO("abc"), "bc"), (io.BytesIO(b"abc"), b"bc")):
            buffer.read(1)
            (result,) = parmap.pmap(lambda one: one.read(), [buffer])
            assert result == rest

    def test_what_cannot_be_read_again(self) -> None:
        """An element or result that fails to be unpickled fails alone, where it travels."""
        if self.shares_memory():
            pytest.skip("nothing is pickled on this plan")
        results: list[Any] = parmap.pmap(lambda x: x, [1, _Trap(), 3], errors="return", chunks=3)
        assert [results[0], results[2]] == [1, 3]
        assert isinstance(results[1].error, parmap.SerializationError)
        assert "sprung" in str(results[1].error)
        assert repr(results[1].error.__cause__) == "ValueError('sprung')"
        results = parmap.pmap(
            lambda x: _Trap() if x == 2 else x, [1, 2, 3], errors="return", chunks=3
        )
        assert [results[0], results[2]] == [1, 3]
        assert isinstance(results[1].error, parmap.SerializationError)
        assert repr(results[1].error.__cause__) == "ValueError('sprung')"
        with pytest.raises(parmap.SerializationError) as caught:
            parmap.submit(_Trap).result(LONG)
        assert repr(caught.value.__cause__) == "ValueError('sprung')"

    def test_tasks_run_the_rest_of_the_plan(self) -> None:
        """Inside a task the nested plans are in force; without any, "sequential"."""
        nested = self.plan.nested
        inside = str(parmap.plan(list(nested))) if nested else "sequential"
        assert set(parmap.pmap(lambda _: str(parmap.current_plan()), range(4))) == {inside}
        assert parmap.submit(lambda: str(parmap.current_plan())).result(LONG) == inside

    def test_calls_inside_of_tasks(self) -> None:
        """A task may itself call pmap and imap, and its errors come through."""

        def inner(y: int) -> float:
            return 1 / y

        def outer(x: int) -> float:
            return sum(parmap.pmap(inner, range(1, x))) + sum(parmap.imap(inner, range(1, x)))

        expected = [2 * sum(1 / y for y in range(1, x)) for x in range(6)]
        assert parmap.pmap(outer, range(6), chunks=2) == expected
        with pytest.raises(ZeroDivisionError) as caught:
            parmap.pmap(lambda x: parmap.pmap(inner, range(x)), [0, 3])
        assert ["element 0" in note for note in caught.value.__notes__] == [True, False]
        assert "element 1" in caught.value.__notes__[1]

    def test_a_managers_proxies_work_in_tasks(self) -> None:
        """Wherever workers are processes of the script's own: they know its key."""
        if not (self.shares_memory() or self.session.traits.trusted):
            pytest.skip("the workers of this plan do not have the script's key")
        with multiprocessing.Manager() as manager:
            shared, lock = manager.dict(), manager.Lock()
            fill = functools.partial(_fill, shared, lock)
            assert parmap.pmap(fill, range(10), chunks=1) == [x * x for x in range(10)]
            assert dict(shared) == {x: x * x for x in range(10)}
