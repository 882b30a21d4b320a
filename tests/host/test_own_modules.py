"""Adapters are fitted to a MODEL's own modules, also while a clone has put others into the network for its runs."""

import logging

import comfy_models
import pytest
import torch
from comfy_adapters import kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.fitting import bank_patcher
from diffusion_blend.nodes.adapters.own_modules import own_modules
from kind_files import file_of

PART = "diffusion_model.joint_blocks.0.x_block.mlp"
WEIGHT = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"


class Twice(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


def wrapped(model):
    """A clone with a part in a wrapper, as a node leaves it that compiles blocks."""
    clone = model.clone()
    clone.add_object_patch(PART, Twice(model.model.get_submodule(PART)))
    return clone


@pytest.fixture
def model():
    return comfy_models.load_tensors(comfy_models.state_dict("sd3"), dtype=torch.float32)


def blended(model, loras):
    return blend_model(model, loras, preference(1.0))


def test_a_clone_that_wraps_a_part_takes_no_layer_from_the_plain_model(sd3, model, loras_folder, caplog):
    write(loras_folder, "every", file_of("LoRA", comfy_models.state_dict("sd3")))
    loras = load_loras(["every.safetensors"])
    expected = sd3.sample(blended(sd3.model, loras))
    other = wrapped(model)
    sd3.sample(other)
    assert isinstance(model.model.get_submodule(PART), Twice)
    with caplog.at_level(logging.INFO, logger="diffusion_blend"):
        at_once = blended(model, loras)
    assert isinstance(model.model.get_submodule(PART), Twice), "the clone keeps its part"
    assert "Skipped" not in caplog.text
    assert difference(sd3.sample(at_once), expected) < 1e-6
    sd3.sample(model)
    assert difference(sd3.sample(blended(model, loras)), expected) < 1e-6


def test_the_modules_of_the_clone_come_back_also_after_an_error(sd3, model):
    sd3.sample(wrapped(model))
    inside = model.model.get_submodule(PART)
    with pytest.raises(RuntimeError), own_modules(model):
        assert inside is not model.model.get_submodule(PART) is inside.inner
        raise RuntimeError
    assert model.model.get_submodule(PART) is inside


def test_a_bank_is_built_anew_where_the_modules_have_changed(model, loras_folder):
    """Replaced in place, without the host's knowledge: the layers inside have other names, and the file's are skipped."""
    write(loras_folder, "in-place", file_of("LoRA", comfy_models.state_dict("sd3")))
    loras = load_loras(["in-place.safetensors"])
    first = bank_patcher(loras, model)
    block = model.model.get_submodule(PART.removesuffix(".mlp"))
    plain, block.mlp = block.mlp, Twice(block.mlp)
    assert f"{PART}.fc2" in first.model.names() and f"{PART}.fc2" not in bank_patcher(loras, model).model.names()
    block.mlp = plain
    again = bank_patcher(loras, model)
    assert again.model.names() == first.model.names() and again is bank_patcher(loras, model)


def test_what_is_skipped_is_said_at_every_use(sd3, loras_folder, caplog):
    more = {f"lora_unet_gone.lora_{part}.weight": torch.ones(4, 4) for part in ("up", "down")}
    write(loras_folder, "said", kohya("sd3", 1) | more)
    loras = load_loras(["said.safetensors"])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="diffusion_blend"):
            blended(sd3.model, loras)
        assert "said.safetensors: " in caplog.text and "(lora_unet_gone)" in caplog.text


def test_an_adapter_that_multiplies_weights_takes_those_that_the_model_puts_in(sd3, model, loras_folder):
    """Loaded or not, and a MODEL that shares the network has others."""
    write(loras_folder, "multiplies", file_of("DoRA", comfy_models.state_dict("sd3"), 0))
    loras = load_loras(["multiplies.safetensors"])
    own = comfy_models.state_dict("sd3")
    others = own | {WEIGHT[16:]: own[WEIGHT[16:]] * 1.5}
    changed = model.clone()
    changed.add_object_patch(WEIGHT, torch.nn.Parameter(others[WEIGHT[16:]], requires_grad=False))
    bases = [comfy_models.load_tensors(tensors, dtype=torch.float32) for tensors in (own, others)]
    truths = [blended(base, load_loras(["multiplies.safetensors"])) for base in bases]
    expected = [sd3.sample(truth) for truth in truths]
    assert difference(*expected) > 1e-3
    for _ in range(2):
        assert difference(sd3.sample(blended(changed, loras)), expected[1]) < 1e-5
        assert difference(sd3.sample(blended(model, loras)), expected[0]) < 1e-5
