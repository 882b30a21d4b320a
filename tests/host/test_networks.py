"""Tiny networks of the host's own classes: the blend by every evaluation, and images with adapters of their own.

A network may reorder its rows, concatenate copies or hold a cache. The truth is the sum of the predictions of copies that the
host patched; for images with draws of their own, one plain call for each adapter.
"""

import comfy.model_management
import comfy_architectures
import comfy_networks
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import hooks_on, predict, write
from comfy_world import blend_model, difference, load_loras, preference

WEIGHTS = (0.3, 0.7)
BY_NAME = {each.name: each for each in (*comfy_networks.ARCHITECTURES, *comfy_architectures.FURTHER)}
DEFAULT = ["Hunyuan3D 2.1", "Qwen-Image-Edit 2511", "PixArt"]


class NeverTrusted(dict):
    """Verdicts by which every image is taken from a plain call."""

    def get(self, *_):
        return False


class Setting:
    """One architecture: the plain MODEL, two adapters, and copies that the host patched with them."""

    def __init__(self, architecture, folder):
        self.architecture = architecture
        self.model = architecture.model()
        self.tensors = [architecture.adapter(seed) for seed in (1, 2)]
        self.copies = [architecture.patched(tensors) for tensors in self.tensors]
        slug = "".join(letter for letter in architecture.name if letter.isalnum())
        for number, tensors in enumerate(self.tensors):
            write(folder, f"{slug}-{number}", tensors)
        self.files = [f"{slug}-{number}.safetensors" for number in range(2)]

    def sample(self, model, batch=1, steps=2):
        positive, negative = (self.architecture.conditioning(seed) for seed in (1, 2))
        latent = self.architecture.empty(batch)
        inputs = (model, 5, steps, 4.0, "euler", "simple", positive, negative, latent)
        samples = host_nodes.common_ksampler(*inputs)[0]["samples"]
        if self.architecture.beside is None:
            return samples
        return torch.cat([part.flatten(1) for part in samples.unbind()], dim=1)  # the video and its sound

    def with_own_text(self, copy, call):
        """The call with the text as the copy's network prepares it."""
        if not self.architecture.prepares_texts:
            return call
        batch = call["input"].shape[0] // len(call["cond_or_uncond"])
        text = self.architecture.text_of(copy, call["cond_or_uncond"], batch)
        return {**call, "c": {**call["c"], "c_crossattn": text}}

    def reference(self):
        def summed(_, call):
            parts = zip(WEIGHTS, self.copies, strict=True)
            return sum(weight * predict(copy, self.with_own_text(copy, call)) for weight, copy in parts)

        model = self.model.clone()
        model.set_model_unet_function_wrapper(summed)
        return model


def check(name, folder, monkeypatch):
    architecture = BY_NAME[name]
    if not architecture.exists():
        pytest.skip(f"this host has no {name}")
    setting = Setting(architecture, folder)
    plain = setting.sample(setting.model)
    expected = setting.sample(setting.reference())
    assert bool(torch.isfinite(expected).all())
    assert difference(plain, expected) > 1e-3
    loras = load_loras(setting.files)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda _: False)  # auto as on a GPU
    for evaluation in ("sequential", "batched", "auto"):
        model = blend_model(setting.model, loras, preference(*WEIGHTS), evaluation=evaluation)
        assert difference(setting.sample(model), expected) < 1e-4, evaluation
    drawn = blend_model(setting.model, loras, preference(1, 1), "stochastic")
    together = setting.sample(drawn, batch=2, steps=4)
    (bank,) = drawn.get_additional_models_with_key("diffusion_blend")
    bank.attachments["diffusion_blend"].right = NeverTrusted()
    assert difference(together, setting.sample(drawn, batch=2, steps=4)) < 1e-4
    assert torch.equal(setting.sample(setting.model), plain)
    assert hooks_on(setting.model) == 0


@pytest.mark.parametrize("name", DEFAULT)
def test_some_networks(name, loras_folder, monkeypatch):
    check(name, loras_folder, monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in DEFAULT])
def test_the_other_networks(name, loras_folder, monkeypatch):
    check(name, loras_folder, monkeypatch)
