from futures_plan import Futures

from parmap.testing import PlanContract


class TestFutures(PlanContract):
    plan = Futures(workers=2)
