"""Times of several sides, taken in turn, and their ratios."""
import dataclasses
import statistics
import time


@dataclasses.dataclass
class Measured:
    seconds: float  # median of one call
    ratio: float = 1.0  # how many times as long as the first side: median over rounds
    low: float = 1.0  # smallest and largest of them
    high: float = 1.0
    rounds: int = 0


def timed(f, least=0.1):
    """A function that returns the seconds of one call of f, from as many calls as take `least` seconds."""
    f()
    start = time.perf_counter()
    f()
    calls = max(1, round(least / (time.perf_counter() - start)))

    def sample():
        start = time.perf_counter()
        for _ in range(calls):
            f()
        return (time.perf_counter() - start) / calls

    return sample


def alternate(sides, rounds):
    """{name: sample} -> {name: Measured}. A round asks every side once, each round beginning with another; ratios are
    between samples of one round, so that what else the machine does meets both."""
    names = list(sides)
    samples = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names):] + names[:r % len(names)]:
            samples[name].append(sides[name]())
    first = samples[names[0]]
    found = {}
    for name in names:
        ratios = sorted(a / b for a, b in zip(samples[name], first))
        found[name] = Measured(statistics.median(samples[name]), statistics.median(ratios), ratios[0], ratios[-1], rounds)
    return found
