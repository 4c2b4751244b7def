"""Where: plans, as values.

A `Plan` is a value. Entering it opens a `Session`, a running thing.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import BuiltinFunctionType, FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, Self, TypeAlias, TypeVar

from parmap.cores import available_cores
from parmap.engine.traits import Traits
from parmap.errors import PlanError
from parmap.plans import blocks, registry, unentered
from parmap.plans.option_values import function_of, whole
from parmap.worker import context

if TYPE_CHECKING:  # a script that names a plan must not wait for what its workers need
    from concurrent.futures import Executor

    from parmap.plans.session import Session
    from parmap.plans.specs import PlanName, Running
    from parmap.transport.messages import CoreShare

    # Editors offer the names, although any string is allowed: other packages have plans, too.
    PlanSpec: TypeAlias = PlanName | str | "Plan" | Running | list[Any]

__all__ = ["Plan", "plan", "started"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)  # its own are below
class Plan(ABC):
    """Where to run: a value that starts nothing until it is entered or started.

    Make one with `plan`. Use it in a ``with`` statement, as a decorator, or hold its
    executor yourself with `start`.

    Parameters
    ----------
    workers : int or callable, optional
        How many workers; a callable without arguments is asked where they start.
        Default: `available_cores`.
    threads_per_worker : "auto", int or None, default "auto"
        How many threads native libraries (BLAS, OpenMP) may use in each worker. ``"auto"``:
        the worker's share of the cores, and never more than was set before, by you or by
        the environment. A number: just that, whatever was set. None: as they are.
    setup : callable, optional
        Run once in each worker before its first task, without arguments.
    nested : tuple of Plan, default ()
        The plans for calls made inside tasks, outermost first.

    Attributes
    ----------
    name : str
        The plan's registered name.
    traits : Traits
        Facts about the place, for the engine. What `start` gives may have an attribute of this
        name instead, where they are known only then.
    modules, commands : tuple of str
        What the plan imports, and runs, that parmap does not bring.
    install : str
        What to give to ``pip install`` for the modules.
    """

    workers: int | Callable[[], int] | None = None
    threads_per_worker: int | Literal["auto"] | None = "auto"
    setup: Callable[[], object] | None = None
    nested: tuple[Plan, ...] = ()

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()
    # What a machine must have before the plan can start on it; see `missing`.
    modules: ClassVar[tuple[str, ...]] = ()
    commands: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    made_in: ClassVar[int]  # each plan's process; no option

    def __post_init__(self) -> None:
        # Resolved here once, so that plans that mean the same are equal.
        object.__setattr__(self, "workers", _workers(self.workers))
        if self.threads_per_worker not in ("auto", None):
            threads = whole(self.threads_per_worker, "threads_per_worker", _THREADS)
            object.__setattr__(self, "threads_per_worker", threads)
        object.__setattr__(self, "setup", function_of("setup", self.setup))
        object.__setattr__(self, "nested", _nested(self.nested))
        object.__setattr__(self, "made_in", os.getpid())

    @classmethod
    def missing(cls) -> str:
        """Say what this machine lacks for the plan, and what to do; empty if nothing."""
        import importlib.util
        import shutil

        modules = [name for name in cls.modules if importlib.util.find_spec(name) is None]
        if modules:
            return f"needs {', '.join(modules)}: pip install '{cls.install}'"
        commands = [name for name in cls.commands if shutil.which(name) is None]
        return f"needs {', '.join(commands)}, a command that is not here" if commands else ""

    @abstractmethod
    def start(self) -> Executor:
        """Start the workers; give the executor, which the caller must shut down."""

    def replace(self, **options: Any) -> Self:
        """Make the same plan with some options changed.

        Raises
        ------
        PlanError
            If an option is unknown or wrong.
        """
        return replace(self, **_fields(type(self), options))

    def count(self) -> int:
        """Resolve how many workers to start, here and now.

        Raises
        ------
        PlanError
            If a callable ``workers=`` gives no positive whole number.
        """
        if callable(self.workers):
            return whole(self.workers())
        return available_cores() if self.workers is None else self.workers

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of this process out among so many workers here.

        Returns
        -------
        CoreShare or None
            What each worker may use; None where tasks simply run as the caller does.
        """
        from parmap.transport.messages import CoreShare

        return CoreShare.share(available_cores(), workers, self.threads_per_worker)

    @property
    def initializer(self) -> Callable[[], object] | None:
        """What ``setup=`` names, ready to be called."""
        if self.setup is None:
            return None
        from parmap.transport.worker_globals import Declared
        from parmap.worker.setup import set_up

        return functools.partial(set_up, self.setup, self.nested, Declared.behind(self.setup))

    def __enter__(self) -> Session:
        """Open a session and make it the current one in this context."""
        session = started(self, outer=context.frame.get())
        blocks.entered(session)
        return session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session that `__enter__` opened in this context."""
        session = blocks.left(self)
        if session is None:
            raise PlanError(
                f"{self} is left in another order, or in another context, than it was entered in: "
                "use one `with` block per plan, and leave it in the task or thread that entered it"
            )
        session.leave(cancel=error is not None)
        for hear in context.left if self.nested else ():
            hear(self)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function: each of its calls runs inside this plan."""

        @functools.wraps(function)
        def planned(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return planned

    def __str__(self) -> str:
        """Write the plan as the text that `plan` reads."""
        if not self.nested:
            return self._text()
        levels = [replace(self, nested=()), *self.nested]
        return f"[{', '.join(map(str, levels))}]"

    def __init_subclass__(cls) -> None:
        """Keep these: a dataclass makes its own, of all fields, else."""
        cls.__repr__ = Plan.__repr__  # type: ignore[method-assign]
        cls.__eq__ = Plan.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Plan.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        """Tell whether two plans are of one kind, with the same options.

        A callable object, an executor or a client is the same only as itself: it need not be
        hashable, and how it compares is not asked.
        """
        if type(other) is not type(self):
            return NotImplemented
        return self._distinct() == other._distinct()

    def __hash__(self) -> int:
        """Hash what `__eq__` compares."""
        return hash((type(self), self._distinct()))

    def _distinct(self) -> tuple[object, ...]:
        return tuple(_distinct(getattr(self, f.name)) for f in fields(self) if f.compare)

    def __repr__(self) -> str:
        """Show the plan as the text that makes it."""
        return f"<Plan {self}>"

    def _repr_html_(self) -> str:
        """Show the plan, level by level, in a notebook."""
        from parmap.html import table

        rows: list[tuple[str, Any]] = []
        for depth, level in enumerate([self, *self.nested]):
            rows.append(("for calls inside of its tasks" if depth else "plan", level.name))
            rows += _chosen(level)
        return table("Plan", rows, more=_IN_FORCE)

    def _text(self) -> str:
        from parmap.plans.parse import written

        options = ", ".join(f"{name}={written(value)}" for name, value in _chosen(self))
        return f"{self.name}({options})" if options else self.name


def started(plan: Plan, outer: object = None) -> Session:
    """Start a plan; give its session.

    The workers come first: while new interpreters start, this one loads the engine.
    """
    executor = plan.start()
    try:
        from parmap.plans.session import Session

        return Session(plan, executor, outer)
    except BaseException:  # Ctrl-C, while it loads: nobody else knows the executor yet
        executor.shutdown(cancel_futures=True)
        raise


def plan(spec: PlanSpec, /, **options: Any) -> Plan:
    """Make a plan: where calls run.

    The plan starts nothing, and no call uses it, until you enter it (``with plan: ...``) or
    pass it to `set_plan`.

    Parameters
    ----------
    spec : str, Plan, concurrent.futures.Executor or list
        A name such as ``"processes"``; a text such as ``"processes(workers=4)"``, which is
        what ``str(plan)`` gives; a `Plan`; a running executor, which is used and never
        closed; or a list of these: the first for the calls you make, the next for calls
        inside their tasks.
    **options
        Options of the plan: for all of them ``workers``, ``threads_per_worker``, ``setup``,
        ``nested``.

    Returns
    -------
    Plan
        A frozen value.

    Raises
    ------
    PlanError
        If a name or an option is unknown or wrong; the message names the valid ones.

    Examples
    --------
    >>> import parmap
    >>> with parmap.plan("threads", workers=2):
    ...     parmap.pmap(len, ["a", "bb", "ccc"])
    [1, 2, 3]
    """
    made = _of(spec, options)
    unentered.note(made.name, sys._getframe(1))  # noqa: SLF001 - as inspect.currentframe does
    return made


def _of(spec: Any, options: dict[str, Any]) -> Plan:
    if isinstance(spec, Plan):
        return spec.replace(**options) if options else spec
    if isinstance(spec, str):
        if spec.isidentifier():  # most are a name alone, for which nothing needs to load
            return _made(registry.named(spec), options)
        from parmap.plans.parse import parse

        spec = [_made(registry.named(name), given) for name, given in parse(spec)]
    if isinstance(spec, list):
        return _levels(spec, options)
    kind, option = registry.adopter(spec)
    return _made(kind, {option: spec, **options})


def _levels(specs: list[Any], options: dict[str, Any]) -> Plan:
    if not specs:
        raise PlanError("the list of plans is empty: name at least one")
    outer, *inner = map(plan, specs)
    return outer.replace(**({"nested": (*outer.nested, *_nested(inner))} | options))


def _made(kind: type[Plan], options: dict[str, Any]) -> Plan:
    return kind(**_fields(kind, options))


def _fields(kind: type[Plan], options: dict[str, Any]) -> dict[str, Any]:
    """Translate options into fields: an option may have a name that the class needs itself."""
    valid = {_option(f.name, f.metadata): f.name for f in fields(kind) if f.init}
    for name in options:
        if name not in valid:
            from parmap.plans.guesses import of_plan

            raise PlanError(
                f"the plan {kind.name!r} has no option {name!r}{of_plan(name, valid)}. "
                f"Options: {', '.join(sorted(valid))}"
            )
    return {valid[name]: value for name, value in options.items()}


def _option(name: str, metadata: Any) -> str:
    return str(metadata.get("option", name))


def _nested(levels: Any) -> tuple[Plan, ...]:
    if isinstance(levels, (str, Plan)):
        levels = [levels]
    plans = map(plan, levels)
    return tuple(itertools.chain.from_iterable((p.replace(nested=()), *p.nested) for p in plans))


def _workers(workers: Any) -> Any:
    if isinstance(workers, str) and ":" in workers:
        workers = function_of("workers", workers)
    return workers if workers is None or callable(workers) else whole(workers)


_THREADS = "give a whole number, at least 1, or 'auto', or None for no limit"


def _chosen(of: Plan) -> list[tuple[str, Any]]:
    """Give the options that are not as by default, but for the plans nested in this one."""
    return [
        (_option(f.name, f.metadata), getattr(of, f.name))
        for f in fields(of)
        if f.name != "nested" and _distinct(getattr(of, f.name)) != _distinct(f.default)
    ]


# Below a plan that a notebook shows: the line that made it has set nothing.
_IN_FORCE = "Calls use it inside `with plan:`, or after parmap.set_plan(plan)."

# Types whose values are equal by what they are: functions, too, among them methods of one object.
_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, FunctionType, BuiltinFunctionType}
    | {MethodType}
)


def _distinct(value: Any) -> object:
    """Give what of an option tells plans apart."""
    if type(value) in (tuple, frozenset):
        return type(value)(map(_distinct, value))
    return value if type(value) in _PLAIN or isinstance(value, Plan) else (type(value), id(value))


# Public: pickles and tracebacks name it as users do, wherever it is defined.
Plan.__module__ = plan.__module__ = "parmap"
