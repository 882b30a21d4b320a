"""Two processes make the same sweep as one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusion_blend.evaluation.sweep.command import main
from sweeps import write_adapter
from tiny_pipelines import save_tiny_sd


def launch(words: list[str], use_cpu: str = "true") -> subprocess.CompletedProcess[str]:
    """Run the command on two processes; without GPUs they talk over gloo."""
    # --multi_gpu is the launcher's name for "several processes on this machine".
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return subprocess.run(
        [*command, "-m", "diffusion_blend.evaluation.sweep", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": use_cpu},
        capture_output=True,
        text=True,
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_two_processes_share_the_units_of_one_sweep(tmp_path: Path) -> None:
    base = save_tiny_sd(tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n")
    words = ["--base.path", str(base), "--base.resolution", "8", "--prompts.source", str(tmp_path / "prompts.txt")]
    for seed, name in enumerate("ab"):
        adapter = write_adapter(tmp_path, base, name, seed)
        words += [f"--adapters.{name}", str(adapter), f"--rewards.{name}", "colourfulness"]
    words += ["--methods", "[base, blend, stochastic]", "--weights", "[[1, 1]]", "--images", "6", "--batch", "2"]
    words += ["--steps", "3", "--resamples", "10", "--save_images", "2"]
    done = launch(["--output", str(tmp_path / "two"), *words])
    assert done.returncode == 0, done.stderr[-3000:]
    # The first of them does five of the nine units, not all of them over again.
    assert "/10 [" in done.stderr and "/18 [" not in done.stderr
    assert main(["--output", str(tmp_path / "one"), *words]) == 0
    found = rows(tmp_path / "two")
    assert len(found) == 3 * 6
    for two, one in zip(found, rows(tmp_path / "one"), strict=True):
        assert {k: v for k, v in two.items() if k not in ("a", "b", "kl")} == {
            k: v for k, v in one.items() if k not in ("a", "b", "kl")
        }
        for name in ("a", "b", "kl"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-4)
    assert (tmp_path / "two/summary.md").exists() and (tmp_path / "two/pareto.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the two processes do find each other")
def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "out"), "--adapters.a", "a.safetensors", "--rewards.a", "colourfulness"]
    done = launch(words, use_cpu="false")
    assert done.returncode != 0 and "2 processes were launched" in done.stderr
    assert not (tmp_path / "out").exists()
