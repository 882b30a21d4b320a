"""The methods cross and distilled in sweeps, against files whose sums are computed here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.blending.groups import KEY, fingerprint
from diffusion_blend.evaluation.sweep.methods import sampler
from diffusion_blend.evaluation.sweep.prepare import plan
from safetensors.torch import load_file, save_file
from sweeps import latents, settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

NAMES = ("a", "b", "c")
World = tuple[Path, dict[str, Path], dict[tuple[int, int], str]]


def write_cross(path: Path, adapters: list[Path], members: tuple[int, int]) -> str:
    """Turn a file into the cross adapter of a pair, as ``bake --method cross`` does, with a visible effect."""
    marks = [fingerprint(load_file(adapters[i])) for i in members]
    names = [NAMES[i] for i in members]
    entry = {"kind": "cross", "id": "one", "member": 0, "rewards": ["pair"], "pair": marks, "pair_names": names}
    target = path.with_name(f"{path.stem}.cross.safetensors")
    save_file(load_file(path), target, {KEY: json.dumps(entry)})
    return str(target)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, three adapters, and a cross adapter of each pair."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("baked")
    base = save_tiny_sd(folder / "base")
    adapters = {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(NAMES)}
    crosses = {
        pair: write_cross(write_adapter(folder, base, f"{pair}", 7 + k, rank=3), list(adapters.values()), pair)
        for k, pair in enumerate(combinations(range(3), 2))
    }
    return base, adapters, crosses


def write_sum(path: Path, parts: Mapping[str, float]) -> Path:
    """Write one file that holds ``sum_k c_k up_k down_k alpha_k / rank_k``, for file -> c."""
    found: dict[str, Any] = {}
    loaded = [(load_file(file), factor) for file, factor in parts.items()]
    for key in [key for key in loaded[0][0] if key.endswith(".lora_down.weight")]:
        layer = key.removesuffix(".lora_down.weight")
        downs = [tensors[key].float() for tensors, _ in loaded]
        ups = [
            tensors[f"{layer}.lora_up.weight"].float() * factor * float(tensors[f"{layer}.alpha"]) / len(tensors[key])
            for tensors, factor in loaded
        ]
        found |= {key: torch.cat(downs), f"{layer}.lora_up.weight": torch.cat(ups, 1)}
        found[f"{layer}.alpha"] = torch.tensor(float(len(found[key])))
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, path, {"diffusion_blend.kl_weight": "0.1"})
    return path


def made(world: World, output: Path, adapters: Mapping[str, Any], **over: Any) -> list[torch.Tensor]:
    ready = sweep(settings(output, world[0], {name: Path(path) for name, path in adapters.items()}, **over))
    return [latents(ready, i, range(3)) for i in range(len(ready.points))]


def test_cross_is_the_soup_plus_each_pairs_update(world: World, tmp_path: Path) -> None:
    """The gates are 4 w_i w_j, computed here; the files of the pairs may come in any order."""
    _, adapters, crosses = world
    wanted = [(0.2, 0.3, 0.5), (0.25, 0.0, 0.75)]
    files = list(reversed(crosses.values()))
    found = made(world, tmp_path / "cross", adapters, methods=["cross", "soup"], weights=wanted, cross=files)
    for k, weights in enumerate(wanted):
        parts = {str(file): w for file, w in zip(adapters.values(), weights, strict=True)}
        parts |= {file: 4 * weights[i] * weights[j] for (i, j), file in crosses.items()}
        one = write_sum(tmp_path / f"sum-{k}.safetensors", parts)
        (expected,) = made(world, tmp_path / f"one-{k}", {"one": one}, weights=[[1.0]])
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5)
        assert float((found[k] - found[2 + k]).abs().max()) > 0.01  # the soup is another one


def test_cross_in_a_corner_is_the_adapter_alone_and_costs_one_call(world: World, tmp_path: Path) -> None:
    _, adapters, crosses = world
    over: dict[str, Any] = {"methods": ["cross"], "cross": list(crosses.values())}
    config = settings(tmp_path / "out", world[0], adapters, weights=[[0, 1, 0], [1, 1, 1]], **over)
    corner, inner = plan(config).points
    assert [sampler(point.recipe).calls(point.recipe) for point in (corner, inner)] == [1, 1]
    (found,) = made(world, tmp_path / "corner", adapters, weights=[[0, 1, 0]], **over)
    (expected,) = made(world, tmp_path / "alone", {"b": adapters["b"]}, weights=[[1.0]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_pair_without_its_file_is_refused(world: World, tmp_path: Path) -> None:
    base, adapters, crosses = world

    def refused(*files: str) -> None:
        plan(settings(tmp_path / "out", base, adapters, methods=["cross"], weights=[[1, 0, 0]], cross=list(files)))

    first, second, third = crosses.values()
    with pytest.raises(ValueError, match=r"cross: there is no cross adapter of b and c: give one file for each pair"):
        refused(first, second)
    with pytest.raises(ValueError, match=r"cross: there is no cross adapter of a and b"):
        refused()
    with pytest.raises(ValueError, match=r"more than one cross adapter of a and b"):
        refused(first, second, third, first)
    with pytest.raises(ValueError, match=r"a\.safetensors: no cross adapter; give files of .*bake --method cross"):
        refused(first, second, third, str(adapters["a"]))
    fewer = {name: adapters[name] for name in "ab"}
    with pytest.raises(ValueError, match="is the cross adapter of a and c, which are not both among the adapters"):
        plan(settings(tmp_path / "few", base, fewer, methods=["cross"], cross=[first, second]))


def test_distilled_is_its_file_at_its_preference(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A corner without a file is the adapter alone; another preference without a file is left out with a line."""
    base, adapters, _ = world
    own = write_adapter(tmp_path, base, "own", 20)
    over: dict[str, Any] = {"methods": ["distilled"], "distilled": {"1,1,2": str(own)}}
    weights = [[1, 0, 0], [1, 1, 2], [0.3, 0.3, 0.4]]
    with caplog.at_level(logging.INFO, "diffusion_blend"):
        corner, inner = made(world, tmp_path / "out", adapters, weights=weights, **over)
    assert "distilled is left out at the weights 0.3,0.3,0.4: there is no file for them" in caplog.text
    for found, name, file in ((corner, "a", adapters["a"]), (inner, "own", own)):
        (expected,) = made(world, tmp_path / f"alone-{name}", {name: file}, weights=[[1.0]])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_distilled_files_for_other_weights_are_refused(world: World, tmp_path: Path) -> None:
    base, adapters, _ = world
    file = str(adapters["a"])
    with pytest.raises(
        ValueError, match=r"distilled has an adapter for \[0.5, 0.5, 0.0\], which is none of the weights"
    ):
        plan(
            settings(
                tmp_path / "o", base, adapters, methods=["distilled"], weights=[[1, 0, 0]], distilled={"1,1,0": file}
            )
        )
    baked = write_adapter(tmp_path, base, "baked", 21)
    header = {"diffusion_blend.baked": json.dumps({"adapters": [{"coefficient": c} for c in (0.25, 0.75)]})}
    save_file(load_file(baked), baked, metadata=header)
    ways = [([1, 0, 3], "1,0,3"), ([3, 1, 0], "3,1,0")]
    right, wrong = (
        settings(tmp_path / "o", base, adapters, methods=["distilled"], weights=[w], distilled={key: str(baked)})
        for w, key in ways
    )
    plan(right)
    with pytest.raises(
        ValueError, match=r"3,1,0 was baked at the coefficients 0.25, 0.75, as its header says, not at 0.75, 0.25, 0"
    ):
        plan(wrong)
    with pytest.raises(ValueError, match="distilled '1,1': 2 weights for 3 adapters"):
        plan(
            settings(
                tmp_path / "o", base, adapters, methods=["distilled"], weights=[[1, 0, 0]], distilled={"1,1": file}
            )
        )


def test_both_may_be_added_to_a_folder(world: World, tmp_path: Path) -> None:
    base, adapters, crosses = world
    given: dict[str, Any] = {"weights": [[1, 1, 1]], "images_per_point": 1}
    first = sweep(settings(tmp_path / "out", base, adapters, methods=["soup"], **given)).run()
    more = {"methods": ["cross", "distilled"], "cross": list(crosses.values())}
    more |= {"distilled": {"1,1,1": str(adapters["a"])}}
    rows = sweep(settings(tmp_path / "out", base, adapters, **more, **given)).run()
    assert [row["method"] for row in rows] == ["soup", "cross", "distilled"]
    assert rows[0]["recipe"] == first[0]["recipe"]
