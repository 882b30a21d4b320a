"""The card's two ceilings, measured: memory bandwidth, and the rate of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from unit_options import begin, parser


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after three to warm up."""
    times = []
    for number in range(repeats + 3):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken = start.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            work()
            taken = time.perf_counter() - began
        if number >= 3:
            times.append(taken)
    return statistics.median(times)


def main() -> None:
    options = parser(__doc__).parse_args()
    records, _ = begin(options)
    device = torch.device("cpu" if options.cpu else "cuda")
    size, side = (2**22, 256) if options.tiny else (2**32, 8192)
    generator = torch.Generator(device).manual_seed(0)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 256, generator=generator)
    target = torch.zeros_like(source)
    taken = seconds_of(lambda: target.copy_(source), device, 10)
    if not torch.equal(source, target):
        raise SystemExit("the copy is not what was copied")
    records.write("ceiling", name="copy", bytes_per_second=2 * size / taken, bytes=2 * size)
    for name in ("float16", "bfloat16", "float32"):
        left, right = (
            torch.randn(side, side, device=device, generator=generator).to(getattr(torch, name)) for _ in "ab"
        )
        taken = seconds_of(lambda a=left, b=right: a @ b, device, 10)
        records.write("ceiling", name=f"matrix product, {name}", flops_per_second=2 * side**3 / taken, side=side)


if __name__ == "__main__":
    main()
