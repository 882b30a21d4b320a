"""The tests of ``tests/host`` that say something about a device, run on it: one line for each test.

They were written for a CPU in float32. Here the host computes on the GPU, without TF32 so that their bounds still hold.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from records import Records, finite
from unit_options import Clock, begin, parser

FILES = ("test_parity", "test_models", "test_adapter_kinds", "test_stochastic", "test_early", "test_msdda",
         "test_compiled_and_cached", "test_over_time_and_space", "test_neighbours", "test_nothing_left", "test_steps",
         "test_miniature")  # fmt: skip
"""The others read files, draw figures or check inputs, which is the same on every device."""

TINY = ("test_compiled_and_cached",)


class OnDevice:
    """A pytest plugin: lets the host use the device, writes every test's outcome, and ends in time.

    Args:
        records: where the lines go.
        clock: of the unit.
        cpu: leave the host on the CPU.
    """

    def __init__(self, records: Records, clock: Clock, *, cpu: bool) -> None:
        self.records, self.clock, self.cpu = records, clock, cpu
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.finished = False

    def pytest_collection(self, session: pytest.Session) -> None:
        """Undo the tests' choice of the CPU: their conftest has been read, and none of the host's models yet."""
        if self.cpu:
            return
        import comfy.cli_args
        import torch

        if "comfy.model_management" in sys.modules:
            raise pytest.UsageError("the host chose its device before the benchmark could")
        comfy.cli_args.args.cpu = False
        comfy.cli_args.args.disable_dynamic_vram = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave the long products of cases out, but not the kinds of models."""
        left = [item for item in items if item.get_closest_marker("full") and item.path.stem != "test_models"]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        self.counts[report.outcome] += 1
        said = report.longreprtext.strip().splitlines()[-1:] if report.outcome == "failed" else []
        self.records.write(
            "test", name=report.nodeid.removeprefix("tests/"), outcome=report.outcome,
            seconds=finite(round(report.duration, 3)), said=said,
        )  # fmt: skip

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.clock.left() < 8:
            item.session.shouldstop = "the unit's time is over"

    def pytest_sessionfinish(self, session: Any) -> None:
        self.finished = not session.shouldstop
        self.records.write("tests", **self.counts, all_run=self.finished, collected=session.testscollected)


def main() -> int:
    options = parser(__doc__).parse_args()
    records, clock = begin(options)
    root = Path(__file__).resolve().parents[2]
    names = TINY if options.tiny else FILES
    files = [str(root / "tests" / "host" / f"{name}.py") for name in names]
    started = time.monotonic()
    plugin = OnDevice(records, clock, cpu=options.cpu)
    command = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root), "-c", str(root / "pyproject.toml")]
    pytest.main([*command, *files], plugins=[plugin])
    print(f"{plugin.counts} in {time.monotonic() - started:.0f} s")
    # A test that fails on a device is a result, not a failure of this program.
    return 0 if plugin.counts["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
