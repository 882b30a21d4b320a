"""Adapters on layers that are neither Linear nor plain convolutions, on the host's own networks: the image is the host's.

A gate of a mixture of experts (HiDream), an embedding, and depthwise convolutions (ACE-Step).
"""

from functools import partial
from unittest import mock

import comfy.ldm.ace.model
import comfy.sd
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import write
from comfy_networks import Architecture
from comfy_world import blend_model, difference, load_loras, preference


def llama(generator):
    return {
        "pooled_output": torch.randn(1, 24, generator=generator),
        "conditioning_llama3": torch.randn(1, 3, 5, 40, generator=generator),
    }


def lyrics(generator):
    return {"conditioning_lyrics": torch.randint(1, 90, (1, 7), generator=generator)}


HIDREAM = Architecture(
    "HiDream", "HiDream",
    {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
     "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [48, 40],
     "text_emb_dim": 24, "axes_dims_rope": (16, 8, 8), "max_resolution": (32, 32), "llama_layers": [0, 1]},
    (6, 48), (16, 8, 8), llama,
)  # fmt: skip
ACE_STEP = Architecture(
    "ACE-Step", "ACEStep",
    {"audio_model": "ace", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "inner_dim": 64,
     "text_embedding_dim": 40, "lyric_encoder_vocab_size": 100, "lyric_hidden_size": 64, "max_position": 256,
     "ssl_encoder_depths": [1], "ssl_names": ["mert"], "ssl_latent_dims": [32]},
    (6, 40), (8, 16, 24), lyrics,
)  # fmt: skip
CASES = {
    "a gate of experts": (HIDREAM, "ff_i.gate"),
    "an embedding": (ACE_STEP, "lyric_embs"),
    "depthwise convolutions": (ACE_STEP, "ff.depth_conv.conv"),
}


@pytest.fixture(autouse=True)
def small_lyric_encoder():
    """Make ACE-Step's encoder of lyrics small, which its configuration does not reach."""
    small = {"output_size": 64, "attention_heads": 2, "linear_units": 64, "num_blocks": 1}
    module = comfy.ldm.ace.model
    with mock.patch.object(module, "LyricEncoder", partial(module.LyricEncoder, **small)):
        yield


def file_of(architecture, ending, seed):
    """Make LoRA pairs for the layers whose names end so, whatever their type is."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, weight in architecture.model().model.state_dict().items():
        if key.endswith(f"{ending}.weight"):
            name, inputs = key.removesuffix(".weight"), weight[0].numel()
            up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator) * 0.7
            down = torch.randn(2, *weight.shape[1:], generator=generator) / inputs**0.5
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    assert tensors
    return tensors


def image(architecture, model, steps=2, batch=1):
    texts = [architecture.conditioning(seed) for seed in (1, 2)]
    latent = architecture.empty(batch)
    return host_nodes.common_ksampler(model, 5, steps, 2.0, "euler", "simple", *texts, latent)[0]["samples"]


@pytest.mark.parametrize("name", CASES)
def test_the_image_is_that_of_the_hosts_loader(name, loras_folder):
    architecture, ending = CASES[name]
    files = [file_of(architecture, ending, seed) for seed in (1, 2)]
    for number, tensors in enumerate(files):
        write(loras_folder, f"{ending}-{number}", tensors)
    loras = load_loras([f"{ending}-{number}.safetensors" for number in range(2)])
    plain = architecture.model()
    before = image(architecture, plain)
    for number, tensors in enumerate(files):
        expected = image(architecture, architecture.patched(tensors))
        weights = [float(i == number) for i in range(2)]
        for evaluation in ("sequential", "batched"):
            blended = blend_model(plain, loras, preference(*weights), evaluation=evaluation)
            assert difference(image(architecture, blended), expected) < 1e-5
        assert difference(before, expected) > 1e-4
    singles = [image(architecture, architecture.patched(tensors), steps=1) for tensors in files]
    blended = blend_model(plain, loras, preference(0.3, 0.7))
    # One Euler step is affine in the prediction.
    assert difference(image(architecture, blended, steps=1), 0.3 * singles[0] + 0.7 * singles[1]) < 1e-4
    stochastic = blend_model(plain, loras, preference(0.5, 0.5), "stochastic")
    got = image(architecture, stochastic, steps=1, batch=4)
    singles = [image(architecture, architecture.patched(tensors), steps=1, batch=4) for tensors in files]
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) / single.abs().max() for single in singles])
    assert float(errors.amin(0).max()) < 1e-5
    souped = plain
    for tensors, weight in zip(files, (0.3, 0.7), strict=True):
        souped, _ = comfy.sd.load_lora_for_models(souped, None, dict(tensors), weight, 0)
    soup = image(architecture, blend_model(plain, loras, preference(0.3, 0.7), "soup"))
    assert difference(soup, image(architecture, souped)) < 1e-5
    assert torch.equal(image(architecture, plain), before)
