"""What an engine costs by itself, and with parmap in front of it.

    python benchmarks/engines.py [--rounds 5]

Fine-grained work, ``x + 1`` for 100,000 numbers, on two workers that run already: by
``parmap.pmap`` on plan ``dask``, ``ray`` and ``processes``, and by one task for each element, as
``client.map`` and a remote function of Ray make them. The latter are given a tenth of the
elements, and their times are multiplied: their cost for each element does not fall with more.
Then one tiny task, there and back. Rounds are interleaved, figures are medians.
"""

import argparse
import statistics
import time

import parmap

COUNT = 100_000
PART = 10


def add_one(x):
    return x + 1


def seconds(call):
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def by_parmap(session):
    took, result = seconds(lambda: session.map(add_one, range(COUNT)))
    assert result == list(range(1, COUNT + 1))
    return took


def by_dask(client):
    few = range(COUNT // PART)
    took, result = seconds(lambda: client.gather(client.map(add_one, few, pure=False)))
    assert result == [x + 1 for x in few]
    return PART * took


def by_ray(ray, remote):
    few = range(COUNT // PART)
    took, result = seconds(lambda: ray.get([remote.remote(x) for x in few]))
    assert result == [x + 1 for x in few]
    return PART * took


def trip(session):
    return seconds(lambda: session.submit(abs, -1).result())[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    import distributed
    import ray

    times = {}
    trips = {}
    sessions = {
        name: parmap.Session(parmap.plan(name, workers=2)) for name in ("processes", "dask", "ray")
    }
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        remote = ray.remote(add_one)
        for _ in range(rounds + 1):  # the first warms up
            for name, session in sessions.items():
                times.setdefault(f"parmap on {name}", []).append(
                    statistics.median(by_parmap(session) for _ in range(5))
                )
                trips.setdefault(name, []).append(
                    statistics.median(trip(session) for _ in range(20))
                )
            times.setdefault("one task each, dask", []).append(by_dask(client))
            times.setdefault("one task each, ray", []).append(by_ray(ray, remote))
    for session in sessions.values():
        session.close()

    medians = {name: statistics.median(took[1:]) for name, took in times.items()}
    print(f"x + 1, {COUNT:,} times, two workers, median of {rounds} rounds")
    for name, took in medians.items():
        print(f"  {name:22} {took * 1e3:10,.1f} ms")
    for engine in ("dask", "ray"):
        own, each = medians[f"parmap on {engine}"], medians[f"one task each, {engine}"]
        faster, slower = each / own, own / medians["parmap on processes"]
        print(f"  {engine}: {faster:,.0f} × faster than one task each, {slower:.1f} × processes")
    print("one tiny task, there and back")
    for name, took in trips.items():
        print(f"  {name:22} {statistics.median(took[1:]) * 1e3:10,.2f} ms")


if __name__ == "__main__":
    main()
