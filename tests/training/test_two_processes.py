"""Two processes act as one with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SUPPORT = Path(__file__).parents[1] / "support"


ALGORITHMS = ("dpok", "ddpo")


def launch(processes: int, base: Path, out: Path) -> None:
    # --multi_gpu is the launcher's name for "several processes on this machine"; without GPUs they talk over gloo.
    kind = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    words = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*words, str(SUPPORT / "two_processes.py"), str(base), str(out), *ALGORITHMS],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders ``one`` and ``two``: all algorithms, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    launch(1, tiny_sd, folder / "one")
    launch(2, tiny_sd, folder / "two")
    return folder


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_make_the_update_of_one_with_twice_the_batch(name: str, results: Path) -> None:
    one = load_file(results / "one" / name / "rank0.safetensors")
    two, second = (load_file(results / "two" / name / f"rank{rank}.safetensors") for rank in (0, 1))
    moved = max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key)
    assert moved > 1e-3  # up-projections start at 0: something was learnt
    for key, value in one.items():
        assert torch.equal(two[key], second[key])  # the processes stay in step, bit for bit
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)
    histories = [json.loads((results / which / name / "history.json").read_text()) for which in ("one", "two")]
    for alone, together in zip(*histories, strict=True):
        for figure in ("reward", "reward_std", "gradient_norm", "ratio_deviation"):
            assert together[figure] == pytest.approx(alone[figure], rel=1e-3, abs=1e-6), figure
