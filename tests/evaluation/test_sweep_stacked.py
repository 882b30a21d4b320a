"""The methods stacked, composite and switch in sweeps, against diffusers' own stack of LoRAs and each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.blending.groups import KEY
from diffusion_blend.evaluation.sweep.prepare import join, plan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sweeps import latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

World = tuple[Path, dict[str, Path], dict[str, str]]


def into_group(path: Path, member: int, group: str = "one", rewards: tuple[str, ...] = ("a", "b")) -> str:
    """Copy an adapter file into a group."""
    entry = {"kind": "stacked", "id": group, "member": member, "rewards": list(rewards)}
    with safe_open(path, "pt") as file:
        header = file.metadata() | {KEY: json.dumps(entry), "diffusion_blend.kl_weight": "0.1"}
    target = path.with_name(f"{group}-{member}.safetensors")
    save_file(load_file(path), target, header)
    return str(target)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stacked")
    base = save_tiny_sd(folder / "base")
    adapters = {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}
    group = {name: into_group(write_adapter(folder, base, f"g{name}", 5 + i), i) for i, name in enumerate(("a", "b"))}
    return base, adapters, group


def made(world: World, output: Path, adapters: dict[str, Any], **over: Any) -> list[torch.Tensor]:
    ready = sweep(settings(output, world[0], {name: Path(path) for name, path in adapters.items()}, **over))
    return [latents(ready, i, range(3)) for i in range(len(ready.points))]


def test_stacked_is_the_soup_of_the_group_beside_other_adapters(world: World, tmp_path: Path) -> None:
    _, adapters, group = world
    over: dict[str, Any] = {"weights": [[0.3, 0.7], [1, 0]]}
    soup = made(world, tmp_path / "soup", group, methods=["soup"], **over)
    beside = made(world, tmp_path / "beside", adapters, methods=["soup", "stacked"], stacked=group, **over)
    themselves = made(world, tmp_path / "themselves", group, methods=["stacked"], **over)
    for expected, one, other in zip(soup, beside[2:], themselves, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6)
    assert float((beside[0] - beside[2]).abs().max()) > 0.01  # the adapters' own soup is another one


def test_it_costs_one_call_a_step(world: World, tmp_path: Path) -> None:
    _, adapters, group = world
    config = settings(tmp_path / "out", world[0], adapters, methods=["stacked", "composite", "switch"], stacked=group)
    from diffusion_blend.evaluation.sweep.methods import sampler

    assert [sampler(point.recipe).calls(point.recipe) for point in plan(config).points] == [1, 2, 1]


def test_adapters_of_no_group_are_refused(world: World, tmp_path: Path) -> None:
    _, adapters, group = world
    with pytest.raises(ValueError, match="stacked: a, b were not trained to be stacked.*give the files of one group"):
        plan(settings(tmp_path / "out", world[0], adapters, methods=["stacked"]))
    other = into_group(adapters["b"], 1, "other")
    with pytest.raises(ValueError, match="stacked: the adapters are of different groups"):
        plan(settings(tmp_path / "out", world[0], adapters, methods=["stacked"], stacked={**group, "b": other}))
    with pytest.raises(ValueError, match=r"stacked names \['a'\], but the adapters are \['a', 'b'\]"):
        plan(settings(tmp_path / "out", world[0], adapters, methods=["stacked"], stacked={"a": group["a"]}))


def test_composite_is_the_even_blend_at_every_preference(world: World, tmp_path: Path) -> None:
    _, adapters, _ = world
    over = {"reward_units": "kl_weight"}
    (even,) = made(world, tmp_path / "blend", adapters, methods=["blend"], weights=[[1, 1]], **over)
    composed = made(
        world, tmp_path / "composite", adapters, methods=["composite"], weights=[[0.2, 0.8], [0.6, 0.4]], **over
    )
    for found in composed:
        torch.testing.assert_close(found, even, rtol=1e-5, atol=1e-6)


def test_switch_runs_each_adapter_in_its_steps(world: World, tmp_path: Path) -> None:
    """With a block as long as the run it is the first adapter alone; with shorter blocks it is none of the two."""
    _, adapters, _ = world
    over: dict[str, Any] = {"weights": [[0.2, 0.8]], "methods": ["switch"]}
    ends = made(world, tmp_path / "ends", adapters, methods=["blend"], weights=[[1, 0], [0, 1]])
    (whole,) = made(world, tmp_path / "whole", adapters, switch_steps=5, **over)
    (short,) = made(world, tmp_path / "short", adapters, switch_steps=1, **over)
    torch.testing.assert_close(whole, ends[0], rtol=1e-5, atol=1e-6)
    assert all(float((short - end).abs().max()) > 0.01 for end in ends)


def test_a_folder_with_pictures_of_other_files_is_refused(world: World, tmp_path: Path) -> None:
    """Its tables would give the mean over both. Files of further preferences, and other settings, are further points."""
    _, adapters, group = world
    retrained = {name: write_adapter(tmp_path, world[0], f"r{name}", 9 + i) for i, name in enumerate(("a", "b"))}
    retrained = {name: into_group(path, i, "again") for i, (name, path) in enumerate(retrained.items())}
    morl, further = {"0.5,0.5": adapters["a"]}, {"0.3,0.7": adapters["b"]}
    over: dict[str, Any] = {"methods": ["stacked", "morl", "switch"], "weights": [[0.3, 0.7], [0.5, 0.5]]}

    def planned(**changed: Any) -> int:
        given = {"stacked": group, "morl": morl, **over, **changed}
        ready = plan(settings(tmp_path / "out", world[0], adapters, **given))
        join(ready)
        return len(ready.records.points())

    first = planned()
    assert planned() == first
    with pytest.raises(
        ValueError, match=r"holds stacked at 0\.[35]/0\.[57] made in another way \(files: .*a new folder"
    ):
        planned(stacked=retrained)
    with pytest.raises(ValueError, match=r"holds morl at 0\.5/0\.5 made in another way \(file: .*a new folder"):
        planned(morl={"0.5,0.5": adapters["b"]})
    assert planned(morl=morl | further) == first + 1
    assert planned(switch_steps=2) == first + 3
