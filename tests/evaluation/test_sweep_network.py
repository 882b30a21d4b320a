"""The network of a sweep: factors that are cached from unit to unit change no picture."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusion_blend.blending.adapters import AdapterBank
from sweeps import latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd


def test_units_of_other_methods_in_between_leave_no_trace(tmp_path: Path) -> None:
    """Methods with all adapters, with averaged ones, with a file of their own and with none, twice in turn."""
    base = save_tiny_sd(tmp_path / "base")
    adapters = {name: write_adapter(tmp_path, base, name, seed) for seed, name in enumerate("ab")}
    own = write_adapter(tmp_path, base, "own", 7)
    methods = ["blend", "factor-soup", "morl", "base", "soup"]
    config = settings(tmp_path / "sweep", base, adapters, methods=methods, morl={"1,1": str(own)})
    together = sweep(config)
    for number in (*range(len(methods)), *reversed(range(len(methods)))):
        alone = latents(sweep(config), number, range(4))
        assert torch.equal(latents(together, number, range(4)), alone), together.points[number].method


def test_factors_are_stacked_once_for_units_that_follow_one_another(tmp_path: Path) -> None:
    base = save_tiny_sd(tmp_path / "base")
    adapters = {name: write_adapter(tmp_path, base, name, seed) for seed, name in enumerate("ab")}
    ready = sweep(settings(tmp_path / "sweep", base, adapters, methods=["blend", "base"]))
    network, banks = ready.runner.network, []

    def bank() -> AdapterBank:
        assert network._bank is not None
        return network._bank[1]

    for number in (0, 0, 1, 0):
        latents(ready, number, range(4))
        banks.append(bank())
    assert banks[0] is banks[1] and banks[0] is not banks[2]
    assert banks[3].names() == banks[0].names() and not banks[2].names()
    assert not any(part.is_inference() for part in banks[0].parameters())
