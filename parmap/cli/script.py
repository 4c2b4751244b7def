"""``parmap run``: a script on a plan."""

from __future__ import annotations

import os
import runpy
import sys
from types import TracebackType
from typing import Any

from parmap.errors import ParmapError
from parmap.plans.current import on_set
from parmap.plans.plan import Plan, plan

__all__ = ["run"]


def run(text: str, script: str, arguments: list[str]) -> int:
    """Run a script as ``python script`` does, on a plan.

    Parameters
    ----------
    text : str
        The plan, as ``str(plan)`` writes it.
    script : str
        The script's path.
    arguments : list of str
        What the script finds in ``sys.argv``, after its own name.

    Returns
    -------
    int
        The exit status.
    """
    try:
        wanted = plan(text)
    except ParmapError as error:
        print(f"--plan: {error}", file=sys.stderr)
        return 2
    if not os.path.isfile(script):
        print(f"there is no file {script!r}: give the script's path", file=sys.stderr)
        return 2
    path = os.path.abspath(script)
    os.environ["PARMAP_PLAN"] = text
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(path)
    winner = _Winner(wanted, path)
    on_set.append(winner)
    try:
        runpy.run_path(path, run_name="__main__")
    except BaseException:
        sys.excepthook = _FromScript(path)
        raise
    finally:
        on_set.remove(winner)
    return 0


class _Winner:
    """Says once that the script sets another plan than ``--plan``, and which of them wins."""

    def __init__(self, wanted: Plan, path: str) -> None:
        self._wanted, self._path, self._said = wanted, path, False

    def __call__(self, chosen: Plan) -> None:
        if self._said or chosen == self._wanted:
            return
        self._said = True
        print(
            f"parmap run: {self._place()} calls set_plan. Its plan, {chosen}, wins over --plan "
            f"{self._wanted} from here on. To choose from outside, remove set_plan from the script",
            file=sys.stderr,
        )

    def _place(self) -> str:
        frame = sys._getframe(1)  # noqa: SLF001 - as inspect.currentframe does
        name = os.path.basename(self._path)
        while (outer := frame.f_back) is not None:
            if outer.f_code.co_filename == self._path:
                return f"{name}, line {outer.f_lineno},"
            frame = outer
        return name


class _FromScript:
    """Shows an error as ``python script`` does: from the script's own frame on."""

    def __init__(self, path: str) -> None:
        self._path, self._hook = path, sys.excepthook  # which the script may have replaced

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> Any:
        inner = trace
        while inner is not None and inner.tb_frame.f_code.co_filename != self._path:
            inner = inner.tb_next
        if inner is not None or isinstance(error, SyntaxError):
            trace = inner
        return self._hook(kind, error.with_traceback(trace), trace)
