"""The miniature in ComfyUI's naming computes what it computes in diffusers and transformers; the host in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import comfy_hosts
import pytest
import torch
from diffusion_blend.miniature import comfy_keys
from safetensors.torch import load_file, save_file

HOSTS = comfy_hosts.find_hosts()

SCRIPT = """
import json, sys
from pathlib import Path
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
import comfy.ops, comfy.utils
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import ModelSamplingDiscrete
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
config, text_config = json.loads((folder / "config.json").read_text())
inputs = load_file(folder / "inputs.safetensors")
with torch.no_grad():
    unet = UNetModel(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    unet.load_state_dict(load_file(folder / "unet.safetensors"))
    text = CLIPTextModel(text_config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    text.load_state_dict(load_file(folder / "text.safetensors"), strict=False)
    output = unet(inputs["x"], inputs["t"], context=inputs["context"], transformer_options={})
    hidden = text(inputs["ids"])[0]
sampling = ModelSamplingDiscrete()
outputs = {"output": output, "hidden": hidden, "sigmas": sampling.sigmas.float()}
save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / "outputs.safetensors")
(folder / "map.json").write_text(json.dumps(comfy.utils.unet_to_diffusers(config)))
"""


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn((3, 12, 16, 16), generator=generator),
        "t": torch.tensor([5.0, 400.0, 990.0]),
        "context": torch.randn((3, 24, 64), generator=generator),
    }


@pytest.fixture(scope="module", params=HOSTS, ids=lambda host: host.name)
def host_outputs(request, tmp_path_factory, fresh, inputs):
    """What the host computes with the converted weights, and its own map of names."""
    folder: Path = tmp_path_factory.mktemp("host")
    ids = fresh.tokenizer(["a red circle", "two blue squares", ""], padding="max_length", return_tensors="pt").input_ids
    unet, text = (
        comfy_keys.unet_to_comfy(fresh.unet.state_dict()),
        comfy_keys.text_encoder_to_comfy(fresh.text_encoder.state_dict()),
    )
    save_file({name: tensor.contiguous() for name, tensor in unet.items()}, folder / "unet.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in text.items()}, folder / "text.safetensors")
    save_file(inputs | {"ids": ids}, folder / "inputs.safetensors")
    text_config = fresh.text_encoder.config.to_dict()
    (folder / "config.json").write_text(json.dumps([comfy_keys.UNET_CONFIG, text_config]))
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(request.param)}
    command = [sys.executable, "-P", str(folder / "script.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "outputs.safetensors"), json.loads((folder / "map.json").read_text()), ids


@pytest.mark.host
def test_the_unet_computes_the_same_in_the_host(host_outputs, fresh, inputs):
    with torch.no_grad():
        expected = fresh.unet(inputs["x"], inputs["t"], inputs["context"]).sample
    assert (host_outputs[0]["output"] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.host
def test_the_text_encoder_computes_the_same_in_the_host(host_outputs, fresh):
    with torch.no_grad():
        expected = fresh.text_encoder(host_outputs[2]).last_hidden_state
    assert (host_outputs[0]["hidden"] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.host
def test_the_noise_levels_are_the_hosts_default(host_outputs, fresh):
    kept = fresh.scheduler.alphas_cumprod
    torch.testing.assert_close(host_outputs[0]["sigmas"], ((1 - kept) / kept).sqrt(), rtol=1e-4, atol=0)


@pytest.mark.host
def test_names_are_those_of_the_hosts_own_map(host_outputs, fresh):
    theirs = host_outputs[1]
    for name in fresh.unet.state_dict():
        assert comfy_keys.comfy_name(name) == theirs[name]


def test_every_name_is_converted_once(fresh):
    converted = comfy_keys.unet_to_comfy(fresh.unet.state_dict())
    assert len(converted) == len(fresh.unet.state_dict())
    with pytest.raises(ValueError, match=r"'transformer.w.weight' is not a weight of the miniature UNet"):
        comfy_keys.comfy_name("transformer.w.weight")


def test_the_vocabulary_is_padded_to_the_hosts(fresh):
    state = fresh.text_encoder.state_dict()
    table = comfy_keys.text_encoder_to_comfy(state)["text_model.embeddings.token_embedding.weight"]
    ours = fresh.text_encoder.get_input_embeddings().weight
    assert table.shape == (49408, 64)
    assert torch.equal(table[: len(ours)], ours) and not table[len(ours) :].any()
