"""The conformance suite: what every plan promises, as tests for pytest.

Changing the plan changes only the time. So the oracle of every test is the built-in `map`,
and whoever writes a plan proves it in three lines::

    class TestMine(PlanContract):
        plan = parmap.plan("mine", workers=3)

The tests stand in one class per promise; `PlanContract` is all of them. They need pytest
and hypothesis, which no other part of parmap imports.
"""

from parmap.testing.arrays import ArraysContract
from parmap.testing.callers import CallersContract
from parmap.testing.causes import CausesContract
from parmap.testing.code import CodeContract
from parmap.testing.context_variables import ContextVariablesContract
from parmap.testing.core_share import CoreShareContract
from parmap.testing.deaths import DeathsContract
from parmap.testing.errors import ErrorsContract
from parmap.testing.failures import FailuresContract
from parmap.testing.futures import FuturesContract
from parmap.testing.graphs import GraphsContract
from parmap.testing.hostile import HostileContract
from parmap.testing.iterables import IterablesContract
from parmap.testing.laziness import LazinessContract
from parmap.testing.neighbours import NeighboursContract
from parmap.testing.results import ResultsContract
from parmap.testing.settings import SettingsContract
from parmap.testing.sharing import SharingContract
from parmap.testing.state import StateContract
from parmap.testing.streams import StreamsContract
from parmap.testing.surroundings import SurroundingsContract
from parmap.testing.travel import TravelContract
from parmap.testing.waiting import WaitingContract

__all__ = ["PlanContract"]


class PlanContract(
    ResultsContract,
    FailuresContract,
    ErrorsContract,
    CausesContract,
    LazinessContract,
    FuturesContract,
    TravelContract,
    CodeContract,
    StateContract,
    StreamsContract,
    GraphsContract,
    CoreShareContract,
    SurroundingsContract,
    SharingContract,
    ArraysContract,
    DeathsContract,
    NeighboursContract,
    WaitingContract,
    CallersContract,
    HostileContract,
    IterablesContract,
    SettingsContract,
    ContextVariablesContract,
):
    """All that a plan promises: derive a test class from it, and set `plan`.

    One session is open for the whole class, and after each test it must still work. Tests
    that need what a plan does not offer, such as a second worker, are skipped and say why.

    Attributes
    ----------
    plan : Plan
        The plan to test. A class that can make it only when it runs does so in
        ``setup_class``, and then calls that of this class.

    Examples
    --------
    In a file that pytest collects:

    >>> import parmap
    >>> from parmap.testing import PlanContract
    >>> class TestThreads(PlanContract):
    ...     plan = parmap.plan("threads", workers=3)
    """
