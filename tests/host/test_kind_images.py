"""Images of every kind of adapter on every architecture: the blend equals the host's own LoRA loader.

A quick selection runs by default, and all pairs by ``pytest -m full tests/host/test_kind_images.py``. Like the host's nodes,
every test runs in torch's inference mode.
"""

import comfy.model_management
import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import Patched, hooks_on, write
from comfy_world import blend_model, difference, load_loras, preference
from kind_files import KINDS, file_of

ARCHITECTURES = ("sd15", "sdxl", "sd3", "flux", "chroma", "qwen", "zimage", "wan")
EVERY = [(architecture, kind) for architecture in ARCHITECTURES for kind in KINDS]
QUICK = [(ARCHITECTURES[(3 * i + 2) % 8], kind) for i, kind in enumerate(KINDS)]
# Two kinds that read the base's weights, and two that do not.
PAIRS = [("LoKr, whole", "DoRA"), ("bias", "LoHa of full rank"), ("OFT", "norm"), ("full difference", "LoRA")]


def both(cases, quick):
    """Mark all cases but a few as full."""
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.full) for case in cases]


@pytest.fixture(scope="module")
def files(loras_folder):
    """Write a file of a kind for an architecture at its first use; returns its name and its tensors."""
    made = {}

    def file(architecture, kind, seed=1):
        key = architecture, kind, seed
        if key not in made:
            tensors = file_of(kind, comfy_models.state_dict(architecture), seed)
            name = f"{architecture} {kind} {seed}"
            if tensors:
                write(loras_folder, name, tensors)
            made[key] = f"{name}.safetensors", tensors
        if not made[key][1]:
            pytest.skip(f"{architecture} has no part for the kind {kind}")
        return made[key]

    return file


@pytest.fixture(scope="module")
def patched():
    """Copies of a checkpoint for the host to patch; those of one architecture at a time."""
    held = {}

    def of(architecture):
        if architecture not in held:
            held.clear()
            held[architecture] = Patched(architecture)
        return held[architecture]

    return of


def image(architecture, model, batch=1, steps=2):
    texts = [comfy_models.conditioning(architecture, seed) for seed in (1, 2)]
    latent = comfy_models.latent(architecture, batch)
    return host_nodes.common_ksampler(model, 5, steps, 2.0, "euler", "simple", *texts, latent)[0]["samples"]


def loaded_by_the_host(plain, name):
    """Return the MODEL with the file, loaded.

    The host reads differences of parameters beside the layers, as Wan's `modulation`, but its loader leaves them out. Here its
    own function for one parameter patches them.
    """
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(plain, name, 1.0)
    comfy.model_management.load_models_gpu([loaded])
    for key in loaded.patches.keys() - loaded.backup.keys():
        loaded.patch_weight_to_device(key)
    return loaded


@pytest.mark.parametrize(("architecture", "kind"), both(EVERY, QUICK))
def test_all_weight_on_one_file_is_the_hosts_loader(architecture, kind, files, patched):
    plain = patched(architecture).model()
    name, _ = files(architecture, kind)
    expected = image(architecture, loaded_by_the_host(plain, name))
    before = image(architecture, plain)
    assert bool(torch.isfinite(expected).all())
    assert difference(before, expected) > 1e-3
    blended = blend_model(plain, load_loras([name]), preference(1.0))
    assert difference(image(architecture, blended), expected) < 1e-5
    assert hooks_on(blended) == 0
    assert torch.equal(image(architecture, plain), before)
