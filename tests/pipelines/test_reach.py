"""Adapters beside what else diffusers does to a network: LoRAs that are loaded, fused projections, weights in 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusion_blend.pipelines import BlendedPipeline, blend
from diffusion_blend.pipelines.blended import compute_dtype
from tiny_pipelines import save_tiny_sd
from tiny_transformers import flux_prompt, tiny_flux
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
CONVOLUTIONS = ("conv1", "proj_in")  # 3 x 3 and 1 x 1
Pairs = dict[str, tuple[Tensor, Tensor]]


def factors(network: nn.Module, seed: int, targets: tuple[str, ...] = (*ATTENTION, *CONVOLUTIONS)) -> Pairs:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(targets):
            shape = module.weight.shape
            down = torch.randn(3, *shape[1:], generator=generator) * 0.3
            found[name] = down, torch.randn(shape[0], 3, *[1] * (len(shape) - 2), generator=generator) * 0.3
    return found


def tensors(pairs: Pairs, part: str = "unet") -> dict[str, Tensor]:
    return {
        f"{part}.{name}.lora_{which}.weight": pair[i] for name, pair in pairs.items() for i, which in enumerate("AB")
    }


def merged(network: nn.Module, *others: Pairs) -> Any:
    """A copy with the updates in its weights."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for pairs in others:
            for name, (down, up) in pairs.items():
                weight: Any = changed.get_submodule(name).weight
                weight += (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return changed


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    torch.set_num_threads(1)
    pipe: Any = DiffusionPipeline.from_pretrained(save_tiny_sd(tmp_path / "base"), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([700, 700])
CALL = *CALL, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))


def output(network: Any) -> Tensor:
    with torch.no_grad():
        return network(*CALL).sample


def blended(network: Any, *adapters: Pairs) -> Tensor:
    named = {str(i): tensors(pairs) for i, pairs in enumerate(adapters)}
    with blend(network, named, [1.0] * len(adapters)):
        return output(network)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [ATTENTION, ("conv1",), ("proj_in",)], ids=["linear", "3x3", "1x1"])
@pytest.mark.parametrize("before", [True, False])
def test_a_lora_that_diffusers_has_loaded_belongs_to_the_base(
    pipe: Any, targets: tuple[str, ...], before: bool
) -> None:
    a, b, own = (factors(pipe.unet, seed) for seed in (1, 2, 3))
    own = {name: pair for name, pair in own.items() if name.endswith(targets)}
    wanted = (output(merged(pipe.unet, own, a)) + output(merged(pipe.unet, own, b))) / 2
    files = {"a": tensors(a), "b": tensors(b)}
    if before:
        pipe.load_lora_weights(tensors(own), adapter_name="own")
    fitted = BlendedPipeline(pipe, files).adapters
    if not before:
        pipe.load_lora_weights(tensors(own), adapter_name="own")
    with blend(pipe.unet, fitted, [1, 1]):
        same(output(pipe.unet), wanted)


def test_fused_projections_have_the_adapters_of_their_parts(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    a, b = factors(pipe.unet, 1), factors(pipe.unet, 2)
    wanted = (output(merged(pipe.unet, a)) + output(merged(pipe.unet, b))) / 2
    pipe.fuse_qkv_projections()
    same(blended(pipe.unet, a, b), wanted)
    soup = {name: (down, up / 2) for name, (down, up) in a.items()}
    pipe.unfuse_qkv_projections()  # diffusers keeps the fused layers and its mark of them
    same(blended(pipe.unet, soup), output(merged(pipe.unet, soup)))
    assert not caplog.text


def test_added_projections_of_flux_are_fused_too(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_flux()
    pairs = factors(pipe.transformer, 1, ATTENTION)
    arguments = {**flux_prompt(), "num_inference_steps": 1, "output_type": "latent"}

    def made(**more: Any) -> Tensor:
        adapters = {"a": tensors(pairs, "transformer")}
        generator = torch.Generator().manual_seed(0)
        return BlendedPipeline(pipe, adapters)(**arguments, **more, generator=generator, weights=[1]).images

    wanted = made()
    assert float((wanted - made(kl_scale=0.0)).abs().max()) > 1e-3
    pipe.transformer.fuse_qkv_projections()
    same(made(), wanted)
    assert not caplog.text


@contextmanager
def passing_by(network: Any, which: str) -> Iterator[list[str]]:
    """Attention that multiplies by a projection's weight without calling the projection, as a kernel would."""
    names = [name for name, _ in network.named_modules() if name.endswith(f"attn1.{which}")]
    for name in names:
        layer = network.get_submodule(name)
        parent = network.get_submodule(name.rpartition(".")[0])
        parent._modules[which] = _Uncalled(layer)
    yield names


class _Uncalled(nn.Linear):
    """Looks like a layer, and is used by its weight: a call runs no hook."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def test_layers_that_are_not_called_are_named(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    pairs = factors(pipe.unet, 1, ATTENTION)
    with passing_by(pipe.unet, "to_q") as names:
        blended(pipe.unet, pairs)
        assert f"{len(names)} of the adapters' layers were not called" in caplog.text
        assert all(name in caplog.text for name in names)
        caplog.clear()
        blended(pipe.unet, {name: pair for name, pair in pairs.items() if name not in names})
        assert not caplog.text
        with pytest.raises(RuntimeError, match=f"none of the adapters' {len(names)} layers was called"):
            blended(pipe.unet, {name: pairs[name] for name in names})


def test_weights_in_8_bits_do_not_round_the_adapters(pipe: Any) -> None:
    a, b = factors(pipe.unet, 1), factors(pipe.unet, 2)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = copy.deepcopy(pipe.unet)
    wide = merged_in_float(stored, a), merged_in_float(stored, b)
    same(blended(pipe.unet, a, b), (output(wide[0]) + output(wide[1])) / 2)


def merged_in_float(network: Any, pairs: Pairs) -> Any:
    """The network as it computes, its weights rounded to 8 bits, with updates that are not."""
    plain = type(network).from_config(network.config)
    plain.load_state_dict({name: value.float() for name, value in network.state_dict().items()})
    return merged(plain.eval(), pairs)


@pytest.mark.parametrize("stored", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_the_precision_of_adapters_is_never_of_8_bits(stored: torch.dtype) -> None:
    network = nn.Linear(2, 2, dtype=torch.bfloat16)
    network.weight = nn.Parameter(torch.zeros(2, 2).to(stored), requires_grad=False)
    assert compute_dtype(network) == torch.bfloat16
    network.register_parameter("bias", None)
    assert compute_dtype(network) == torch.float32
