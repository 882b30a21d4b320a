"""Time what a Preference Duel computes after a vote, without the pictures: the next pair, the best option and the shading.

    python -P benchmarks/duel_time.py [--adapters 2 3 4 8] [--votes 10 50 100] [--repeats N]

Every search has votes of its own: those of a person with a peak, 15 % of whose votes are a coin's. ``process`` is the time of
this process on a core, ``wall`` that of a clock, which other programs lengthen. Both are medians of the repeats, in ms, and
``slowest`` is the largest process time. One thread is used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from diffusion_blend.artifacts.tables import markdown_table  # noqa: E402
from diffusion_blend.evaluation.taste.people import KL_RANGE, make_person  # noqa: E402
from diffusion_blend.preference_learning.landscape import landscape  # noqa: E402
from diffusion_blend.preference_learning.search import Search  # noqa: E402
from diffusion_blend.preference_learning.votes import Vote, read, write  # noqa: E402


def answer(search: Search, text: str) -> tuple[object, object]:
    """What the node computes from the text of the votes."""
    entries = read(text, search.adapters, search.next_pair)
    posterior = search.posterior(entries)
    return search.next_pair(entries, posterior), landscape(search, entries, posterior)


def measure(adapters: int, at: Sequence[int], repeats: int) -> list[dict[str, object]]:
    """A row for every number of votes."""
    search, votes, rows = Search(adapters, *KL_RANGE), list[Vote](), []
    person = make_person("peaked", adapters, 0.15, 0)
    for count in sorted(at):
        while len(votes) < count:
            votes.append(person.vote(*search.next_pair(votes)))
        text, times = write(votes), []
        for _ in range(repeats):
            start = time.process_time(), time.perf_counter()
            answer(search, text)
            times.append((1000 * (time.process_time() - start[0]), 1000 * (time.perf_counter() - start[1])))
        process, wall = zip(*times, strict=True)
        figures = {"process": statistics.median(process), "wall": statistics.median(wall), "slowest": max(process)}
        rows.append({"adapters": adapters, "votes": count} | {name: f"{value:.1f}" for name, value in figures.items()})
    return rows


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--votes", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    rows = [row for adapters in options.adapters for row in measure(adapters, options.votes, options.repeats)]
    sys.stdout.write(markdown_table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
