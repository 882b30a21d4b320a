"""A layer that is changed after the blend: exact for kinds that only add, and said for those that multiply the weight."""

import comfy_models
import nodes as host_nodes
import pytest
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference
from kind_files import file_of

SAID = "multiplies the weights of layers that"
EXACT = ("LoRA", "LoKr, whole")


@pytest.fixture
def files(loras_folder):
    """Write a file of a kind, and the LoRA on the same layers that comes before or after it."""
    weights = comfy_models.state_dict("sd15")

    def make(kind):
        write(loras_folder, "own", file_of(kind, weights, 1))
        write(loras_folder, "other", file_of("LoRA", weights, 1))
        return "own.safetensors", "other.safetensors"

    return make


def by_host(model, name, strength=1.0):
    return host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0]


def blended(model, name):
    return blend_model(model, load_loras([name]), preference(1.0))


@pytest.mark.parametrize("kind", [*EXACT, "DoRA", "OFT"])
def test_a_lora_before_the_blend_is_exact_and_one_after_it_is_exact_or_said(sd15, files, kind, caplog):
    own, other = files(kind)
    caplog.set_level("INFO", logger="diffusion_blend")
    before = blended(by_host(sd15.model, other, 0.6), own)
    assert difference(sd15.sample(before), sd15.sample(by_host(by_host(sd15.model, other, 0.6), own))) < 1e-5
    assert SAID not in caplog.text
    after = by_host(blended(sd15.model, own), other, 0.6)
    distance = difference(sd15.sample(after), sd15.sample(by_host(by_host(sd15.model, own), other, 0.6)))
    assert (distance < 1e-5) == (kind in EXACT)
    assert (f"own (DoRA or OFT) {SAID} a node after the blend changes" in caplog.text) == (kind not in EXACT)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_a_hook_on_the_same_layers_is_exact_or_said(sd15, files, kind, caplog):
    from comfy_extras import nodes_hooks

    own, other = files(kind)
    caplog.set_level("INFO", logger="diffusion_blend")
    hooks = nodes_hooks.CreateHookLoraModelOnly().create_hook_model_only(other, 1.0)[0]
    positive = nodes_hooks.SetModelHooksOnCond().attach_hook(comfy_models.conditioning("sd15", 1), hooks)[0]
    found, expected = (
        sd15.sample(model, positive=positive) for model in (blended(sd15.model, own), by_host(sd15.model, own))
    )
    assert (difference(found, expected) < 1e-5) == (kind in EXACT)
    assert (f"{SAID} a hook changes" in caplog.text) == (kind not in EXACT)
    caplog.clear()
    sd15.sample(blended(sd15.model, own))  # without the hook
    assert SAID not in caplog.text
