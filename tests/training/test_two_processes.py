"""Two processes act as one with twice the batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from network_namespaces import Machine, NoNamespaces, two_machines
from safetensors.torch import load_file

SUPPORT = Path(__file__).parents[1] / "support"


ALGORITHMS = ("dpok", "ddpo")
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH")))),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}


def launch(processes: int, base: Path, out: Path, *runs: str) -> None:
    # --multi_gpu is the launcher's name for "several processes on this machine"; without GPUs they talk over gloo.
    kind = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    words = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*words, str(SUPPORT / "two_processes.py"), str(base), str(out), *runs],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def start_on(machines: tuple[Machine, Machine], command: list[str]) -> list[subprocess.Popen[str]]:
    """Start one process of a training on each machine."""
    common = [sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    common += ["--master_addr", machines[0].address, "--master_port", "29533"]
    return [
        machine.start([*common, "--node_rank", str(rank), *command], ENVIRONMENT)
        for rank, machine in enumerate(machines)
    ]


@pytest.fixture(scope="module")
def results(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders ``one`` and ``two``: all algorithms, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    launch(1, tiny_sd, folder / "one", *ALGORITHMS)
    launch(2, tiny_sd, folder / "two", *ALGORITHMS, "dpok+shard", "ddpo+resume")
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


@pytest.mark.full
def test_two_machines_make_the_update_of_two_processes(results: Path, tiny_sd: Path, tmp_path: Path) -> None:
    """Two network namespaces as two machines, over gloo."""
    try:
        with two_machines() as machines:
            started = start_on(machines, [str(SUPPORT / "two_processes.py"), str(tiny_sd), str(tmp_path), "dpok"])
            texts = [process.communicate(timeout=300)[0] for process in started]
    except NoNamespaces as error:
        pytest.skip(str(error))
    assert [process.returncode for process in started] == [0, 0], "\n".join(texts)[-3000:]
    for rank in (0, 1):
        here, apart = (load_file(folder / "dpok" / f"rank{rank}.safetensors") for folder in (results / "two", tmp_path))
        assert all(torch.equal(here[key], apart[key]) for key in here)


@pytest.mark.full
def test_a_machine_that_dies_stops_the_run_which_is_then_resumed(tiny_sd: Path, tmp_path: Path) -> None:
    def words(*more: str) -> list[str]:
        settings = {"steps": 2, "samples": 4, "batch": 2}
        command = ["-m", "diffusion_blend.training", "--output", str(tmp_path / "run"), "--base.path", str(tiny_sd)]
        command += ["--rewards.colourfulness", "1", "--algorithm.name", "ddpo", "--prompts.count", "2"]
        command += [
            "--algorithm.statistics_minimum",
            "2",
            "--optimizer.accumulate",
            "1",
            "--run.save_every",
            "1",
            "--run.watch_every",
            "0",
        ]
        return (
            command + [word for key, value in settings.items() for word in (f"--sampling.{key}", str(value))] + [*more]
        )

    try:
        with two_machines() as machines:
            first = start_on(machines, words("--run.iterations", "1000"))
            kept = tmp_path / "run" / "checkpoints"
            deadline = time.monotonic() + 200
            while not list(kept.glob("checkpoint-*2")):
                assert time.monotonic() < deadline and first[0].poll() is None, first[0].communicate()[0]
                time.sleep(0.2)
            machines[1].kill()
            said = first[0].communicate(timeout=200)[0]
            assert first[0].returncode != 0
            assert re.search("Connection (closed|reset) by peer|Broken pipe", said), said[-6000:]
            done = int(sorted(kept.glob("checkpoint-????????"))[-1].name[-8:])
            again = start_on(machines, words("--resume", "true", "--run.iterations", str(done + 1)))
            texts = [process.communicate(timeout=200)[0] for process in again]
            assert [process.returncode for process in again] == [0, 0], "\n".join(texts)[-3000:]
    except NoNamespaces as error:
        pytest.skip(str(error))
    assert (kept / f"checkpoint-{done + 1:08d}").is_dir() and (tmp_path / "run" / "adapter.safetensors").is_file()


def test_a_base_split_over_two_processes_trains_the_same_adapter(results: Path) -> None:
    for rank in (0, 1):
        whole, split = (
            load_file(results / "two" / name / f"rank{rank}.safetensors") for name in ("dpok", "dpok+shard")
        )
        for key, value in whole.items():
            torch.testing.assert_close(split[key], value, rtol=1e-4, atol=1e-6)
        held = json.loads((results / "two" / "dpok+shard" / f"rank{rank}.json").read_text())
        adapter = sum(map(torch.numel, whole.values()))
        assert held["held"] - adapter < 0.52 * (held["whole"] - adapter)  # some layers have an odd number of rows


def test_a_resumed_run_goes_on_with_the_random_numbers_of_each_process(results: Path) -> None:
    """A reward of one's own may draw from the global generators, and no two processes should draw alike."""
    for rank in (0, 1):
        whole, resumed = (
            load_file(results / "two" / name / f"rank{rank}.safetensors") for name in ("ddpo", "ddpo+resume")
        )
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
        drawn = json.loads((results / "two" / "ddpo+resume" / f"rank{rank}.json").read_text())["drawn"]
        assert drawn == torch.rand(1, generator=torch.Generator().manual_seed(100 + rank)).item()
