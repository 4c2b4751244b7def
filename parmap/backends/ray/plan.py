"""Plan ``ray``: a Ray that runs already, a cluster by its address, or a new one on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ClassVar

from parmap.errors import PlanError
from parmap.plans.plan import Plan
from parmap.transport.messages import CoreShare

__all__ = ["Ray"]

# What a plan makes of a mapping, so that it can be hashed and written.
Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Ray(Plan):
    """Workers of Ray: on this machine, or a cluster that runs already.

    A Ray that runs in this process is used, and left running. Else `address` says what to
    connect to; or, without it, a new Ray is started on this machine, and ended with the last
    session that uses it. ``workers=`` is how many start there; of a Ray that runs already,
    how many tasks of a session run at once.

    Parameters
    ----------
    address : str, optional
        The address of a cluster, such as ``"auto"`` or ``"ray://node1:10001"``. Default: what
        the environment names in ``RAY_ADDRESS``, if anything.
    num_cpus, num_gpus : float, optional
        What each task takes of a node. Default: one CPU (none inside of another task of Ray,
        which has one already), no GPU.
    resources : mapping, optional
        What each task takes of a node's other resources, by their names.
    runtime_env : mapping, optional
        Ray's runtime environment for the tasks.
    """

    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] | Pairs = ()
    runtime_env: Mapping[str, Any] | Pairs = ()

    name: ClassVar[str] = "ray"
    modules: ClassVar[tuple[str, ...]] = ("ray",)
    install: ClassVar[str] = "parmap-plans[ray]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address is not None and not isinstance(self.address, str):
            raise PlanError(f"address={self.address!r}: give a text such as 'auto'")
        for option in ("resources", "runtime_env"):
            object.__setattr__(self, option, _pairs(option, getattr(self, option)))
        amounts = {f"resources[{name!r}]": amount for name, amount in dict(self.resources).items()}
        amounts |= {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        for name, amount in amounts.items():
            number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
            if amount is not None and not (number and 0 <= amount < math.inf):
                raise PlanError(f"{name}={amount!r}: give a number, at least 0")

    def core_share(self, workers: int) -> CoreShare | None:
        """Share the cores of each node out among the workers there."""
        own = super().core_share(workers)
        # Nodes may be other machines.
        return None if own is None else own._replace(among=workers)

    def start(self) -> Executor:
        """Start Ray, or use the one that runs."""
        from parmap.backends.ray.executor import RayExecutor
        from parmap.backends.ray.runtime import enter, loaded

        ray = loaded()
        leave, ours = enter(ray, self)
        try:
            inside = ray.get_runtime_context().get_task_id() is not None
            options = self.claims | ({"num_cpus": 0} if inside and self.num_cpus is None else {})
            known = ours or inside or self.workers is not None
            return RayExecutor(
                ray, options, self.count() if known else None, self.initializer, leave
            )
        except BaseException:
            leave()
            raise

    @property
    def claims(self) -> dict[str, Any]:
        """What Ray is told of each task."""
        claims = {
            "num_cpus": 1 if self.num_cpus is None else self.num_cpus,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
            "runtime_env": _thawed(self.runtime_env),
        }
        return {name: one for name, one in claims.items() if one not in (None, {}, [])}


def _pairs(option: str, value: Any) -> Pairs:
    try:
        pairs = _frozen(dict(value))
        hash(pairs)
        # Sorted above, so that names of several kinds are refused there.
        if all(isinstance(name, str) for name, _ in pairs):
            return pairs  # type: ignore[no-any-return]
    except (TypeError, ValueError):
        pass
    raise PlanError(f"{option}={value!r}: give a mapping of names to plain values")


def _frozen(value: Any) -> Any:
    """Make a value of dicts and lists one of tuples; what is empty in a dict says nothing."""
    if isinstance(value, Mapping):
        pairs = ((name, _frozen(part)) for name, part in value.items())
        return tuple(sorted(pair for pair in pairs if pair[1] != ()))
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _thawed(value: Any) -> Any:
    """Make dicts and lists of tuples again."""
    if not isinstance(value, tuple):
        return value
    if all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in value):  # noqa: PLR2004 - pairs
        return {name: _thawed(part) for name, part in value}
    return list(map(_thawed, value))
