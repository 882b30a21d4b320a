"""Files as the real writers make them: LyCORIS, PEFT, and ComfyUI's own nodes. The truth is the writer's own forward pass.

It is taken from the layers while they are trained: LyCORIS 4.1 merges LoHa and LoKr at half their strength, and PEFT's merge of a
convolution's DoRA differs from its forward pass.
"""

import comfy.lora
import comfy_models
import pytest
import torch
from dense_updates import assert_same, changes, fit, host_changes
from torch import nn

# diffusers' name of a layer -> the network's.
LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.0.norm1": "input_blocks.1.0.in_layers.0",
}


def network():
    """Three of SD 1.5's layers under diffusers' names, with the checkpoint's weights."""
    root = nn.Module()
    weights = comfy_models.state_dict("sd15")
    makers = (
        lambda: nn.Linear(768, 320, bias=False),
        lambda: nn.Conv2d(320, 320, 3, padding=1),
        lambda: nn.GroupNorm(32, 320),
    )
    for (theirs, ours), make in zip(LAYERS.items(), makers, strict=True):
        *path, last = theirs.split(".")
        parent = root
        for name in path:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent._modules[name]
        layer = make()
        layer.load_state_dict({name: weights[f"{ours}.{name}"] for name in layer.state_dict()})
        parent.add_module(last, layer)
    return root.requires_grad_(False)


def effective_weights(root):
    """The layers' weights as their forward pass applies them, under the network's names."""
    found = {}
    for theirs, ours in LAYERS.items():
        layer = root.get_submodule(theirs)
        if theirs.endswith("to_k"):
            found[f"diffusion_model.{ours}.weight"] = layer(torch.eye(768)).t()
        elif theirs.endswith("conv1"):
            # A unit at each place of a 3 x 3 image: the output in the middle is the weight at that place.
            unit = torch.eye(320 * 9).view(320 * 9, 320, 3, 3)
            bias = layer(torch.zeros(1, 320, 3, 3))[..., 1, 1]
            found[f"diffusion_model.{ours}.weight"] = (layer(unit)[..., 1, 1] - bias).t().reshape(320, 320, 3, 3)
            found[f"diffusion_model.{ours}.bias"] = bias.flatten()
        else:
            x = torch.randn(2, 320, 4, 4, generator=torch.Generator().manual_seed(1))
            normed = nn.functional.group_norm(x, 32)
            solution = torch.stack([normed.movedim(1, 0).flatten(1), torch.ones(320, 32)], dim=-1)
            weight, bias = torch.linalg.lstsq(solution, layer(x).movedim(1, 0).flatten(1)[..., None]).solution.unbind(1)
            found[f"diffusion_model.{ours}.weight"] = weight.flatten()
            found[f"diffusion_model.{ours}.bias"] = bias.flatten()
    return found


def change(before, after):
    return {
        name: after[name] - before[name] for name in before if float((after[name] - before[name]).abs().max()) > 1e-5
    }


LYCORIS = {
    "LoCon": {"algo": "locon"},
    "LoCon with Tucker cores": {"algo": "locon", "use_tucker": True},
    "LoHa": {"algo": "loha"},
    "LoHa with Tucker cores": {"algo": "loha", "use_tucker": True},
    "LoKr": {"algo": "lokr", "factor": 8},
    "LoKr at the trainers' defaults": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "LoKr, both factored": {"algo": "lokr", "factor": 16, "decompose_both": True},
    "OFT": {"algo": "diag-oft"},
    "full": {"algo": "full"},
    "LoCon with norms": {"algo": "locon", "train_norm": True},
}


@pytest.mark.parametrize("name", LYCORIS)
def test_files_of_lycoris_are_its_own_merge(name):
    import lycoris

    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        module = network()
        before = effective_weights(module)
        wrapper = lycoris.create_lycoris(
            module, 1.0, linear_dim=8, linear_alpha=4, conv_dim=8, conv_alpha=4, preset="full", **LYCORIS[name]
        )
        wrapper.apply_to()
        for key, parameter in wrapper.named_parameters():
            if not key.endswith("alpha"):
                nn.init.normal_(parameter, std=0.05)
        tensors = {key: value.clone() for key, value in wrapper.state_dict().items()}
        expected = change(before, effective_weights(module))
    assert expected
    updates, report = fit(comfy_models.load("sd15"), tensors)
    assert not report.absent and not report.misshapen
    assert_same(changes(comfy_models.load("sd15").model, updates), expected, tolerance=2e-5)


PEFT = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 4}),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 4, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 4}),
    "LoKr": ("LoKrConfig", {"r": 4, "alpha": 4, "decompose_factor": 8}),
}


@pytest.mark.parametrize("name", PEFT)
def test_files_of_peft_are_its_own_merge(name):
    import peft

    make, settings = PEFT[name]
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        module = network()
        before = effective_weights(module)
        config = getattr(peft, make)(target_modules=["to_k", "conv1"], **settings)
        wrapped = peft.PeftModel(module, config).train()  # a cache of norms is used in evaluation only
        for key, parameter in wrapped.named_parameters():
            if any(part in key for part in ("lora_A", "lora_B", "hada", "lokr")):
                nn.init.normal_(parameter, std=0.05)
            elif "magnitude" in key:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        tensors = {key: value.clone() for key, value in peft.get_peft_model_state_dict(wrapped).items()}
        expected = change(before, effective_weights(wrapped.base_model.model))
    assert len(expected) == 2
    updates, report = fit(comfy_models.load("sd15"), tensors)
    assert not report.text() or "Its updates (" in report.text()
    assert_same(changes(comfy_models.load("sd15").model, updates), expected, tolerance=2e-5)


def test_a_file_of_comfyuis_extract_node_is_the_model_that_it_was_extracted_from(sd15):
    """Extract and Save LoRA writes pairs and, by default, every bias difference."""
    import comfy_extras.nodes_lora_extract as extract

    if not hasattr(extract, "calc_lora_model"):
        pytest.skip("this version of the host has no such function")
    model = sd15.model.clone()
    biases = [key for key in model.model.state_dict() if key.endswith("in_layers.2.bias")]
    changed = [f"diffusion_model.{layer}.weight" for layer in ("input_blocks.1.0.in_layers.2", "time_embed.0")]
    generator = torch.Generator().manual_seed(0)
    for key in (*biases, *changed):
        value = model.model.state_dict()[key]
        model.add_patches({key: ("diff", (torch.randn(value.shape, generator=generator) / 20,))})
    names = ("diffusion_model.input_blocks.1.0", "diffusion_model.time_embed")
    arguments = (model, 8, names[0], names[0], {}, extract.LORA_TYPES["standard"])
    tensors = extract.calc_lora_model(*arguments, bias_diff=True)
    assert any(key.endswith(".diff_b") for key in tensors) and any(key.endswith(".lora_up.weight") for key in tensors)
    updates, report = fit(sd15.model, tensors)
    assert not report.absent and not report.misshapen
    hosts = host_changes(sd15.model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)
    assert_same(changes(sd15.model.model, updates), hosts)
    assert f"diffusion_model.{LAYERS['down_blocks.0.resnets.0.conv1']}.bias" in hosts


@pytest.mark.parametrize("name", ["LoRA", "DoRA"])
def test_files_of_diffusers_save_lora_weights_are_its_own_forward_pass(name, tmp_path):
    """As diffusers' training scripts save: peft's tensors, converted, written with the adapter's settings in the header."""
    import peft
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from diffusion_blend.nodes.adapters.files import read_lora

    make, settings = PEFT[name]
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        module = network()
        before = effective_weights(module)
        config = getattr(peft, make)(target_modules=["to_k", "conv1"], **settings)
        peft.inject_adapter_in_model(config, module)
        module.train()
        for key, parameter in module.named_parameters():
            if "lora_A" in key or "lora_B" in key:
                nn.init.normal_(parameter, std=0.05)
            elif "magnitude" in key:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(module)),
            unet_lora_adapter_metadata=config.to_dict(),
        )
        expected = change(before, effective_weights(module))
    assert len(expected) == 2
    adapter = read_lora(str(tmp_path / "pytorch_lora_weights.safetensors"), 1.0)
    updates, report = fit(comfy_models.load("sd15"), adapter.tensors)
    assert not report.absent and not report.misshapen
    assert_same(changes(comfy_models.load("sd15").model, updates), expected, tolerance=2e-5)
