"""A corpus of adapter files by family: the key names of public trainers, on the architectures that they train.

The truth is the update itself, ``up @ down`` on the weight (or the slice) that the host's own tables name. "host" marks the names
that the host maps, too; the others load nowhere in ComfyUI.
"""

import comfy.lora
import comfy.utils
import comfy_models
import pytest
import torch
from comfy_adapters import low_rank
from dense_updates import assert_same, changes, fit, host_changes

PEFT = ("lora_B.weight", "lora_A.weight")
KOHYA = ("lora_up.weight", "lora_down.weight")
OLD = ("lora.up.weight", "lora.down.weight")
SAVED = ("lora_B.default.weight", "lora_A.default.weight")


def dotted(prefix):
    return lambda name: prefix + name


def underscored(prefix):
    return lambda name: prefix + name.replace(".", "_")


# Family -> (source of the naming, prefix, endings, "diffusers" or "native" names of layers).
FAMILIES = {
    "kohya": ("kohya-ss/sd-scripts networks/lora.py", underscored("lora_unet_"), KOHYA, "diffusers"),
    "kohya, native names": ("kohya-ss/musubi-tuner", underscored("lora_unet_"), KOHYA, "native"),
    "diffusers": ("diffusers save_lora_weights, UNet", dotted("unet."), PEFT, "diffusers"),
    "diffusers of 2023": ("diffusers train_text_to_image_lora.py", dotted("unet."), OLD, "diffusers"),
    "diffusers transformer": ("diffusers save_lora_weights, transformer", dotted("transformer."), PEFT, "diffusers"),
    "PEFT": ("peft get_peft_model_state_dict", dotted("base_model.model."), PEFT, "diffusers"),
    "PEFT with the adapter's name": ("peft state_dict", dotted("base_model.model."), SAVED, "diffusers"),
    "PEFT under the network's name": ("PixArt training script", dotted("unet.base_model.model."), PEFT, "diffusers"),
    "plain": ("DiffSynth-Studio", dotted(""), PEFT, "diffusers"),
    "ComfyUI": ("ComfyUI nodes_train.py", dotted("diffusion_model."), KOHYA, "native"),
    "ai-toolkit": ("ostris/ai-toolkit", dotted("diffusion_model."), PEFT, "native"),
    "checkpoint's names": ("original repositories", dotted("model.diffusion_model."), PEFT, "native"),
    "SimpleTuner": ("bghira/SimpleTuner, LyCORIS", underscored("lycoris_"), KOHYA, "diffusers"),
    "OneTrainer": ("Nerogar/OneTrainer", underscored("lora_transformer_"), KOHYA, "diffusers"),
}
# Architecture -> native layers and, where the host has a table of diffusers' names, that table.
LAYERS = {
    "sd15": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", "input_blocks.1.0.in_layers.2"),
    "sdxl": ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "middle_block.0.out_layers.3"),
    "sd3": ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.mlp.fc1"),
    "flux": ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"),
    "zimage": ("layers.0.attention.qkv", "layers.1.feed_forward.w2"),
    "chroma": ("double_blocks.0.txt_attn.proj", "single_blocks.0.linear1"),
    "qwen": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "wan": ("blocks.0.self_attn.q", "blocks.1.ffn.0"),
}
UNET = ("sd15", "sdxl")
FOR = {
    "diffusers": UNET,
    "diffusers of 2023": UNET,
    "PEFT under the network's name": UNET,
    "diffusers transformer": ("sd3", "flux", "zimage", "qwen"),
    "OneTrainer": ("sd3", "flux"),
}
CASES = [(family, kind) for family in FAMILIES for kind in LAYERS if kind in FOR.get(family, tuple(LAYERS))]


def diffusers_table(kind):
    """Return the host's own table: diffusers' name of a weight -> the network's, or a slice of it."""
    config = comfy_models.load(kind).model.model_config.unet_config
    tables = {
        "sd15": "unet_to_diffusers",
        "sdxl": "unet_to_diffusers",
        "sd3": "mmdit_to_diffusers",
        "flux": "flux_to_diffusers",
        "zimage": "z_image_to_diffusers",
    }
    if kind not in tables or not hasattr(comfy.utils, tables[kind]):
        return None
    return getattr(comfy.utils, tables[kind])(config)


def named_layers(kind, names):
    """Return a file's layer names -> (native name, slice)."""
    if names == "native":
        return {layer: (layer, None) for layer in LAYERS[kind]}
    table = diffusers_table(kind)
    if table is None:
        return {layer: (layer, None) for layer in LAYERS[kind]} if kind in ("qwen", "wan", "chroma") else {}
    found = {}  # the first of several names of one layer
    for theirs, ours in table.items():
        target, part = (ours, None) if isinstance(ours, str) else (ours[0], ours[1])
        if target.removesuffix(".weight") in LAYERS[kind] and theirs.endswith(".weight"):
            found.setdefault((target.removesuffix(".weight"), part), theirs.removesuffix(".weight"))
    return {name: place for place, name in found.items()}


def file_and_truth(family, kind):
    _, spell, (up_ending, down_ending), names = FAMILIES[family]
    generator = torch.Generator().manual_seed(len(family))
    tensors, truth = {}, {}
    for name, (layer, part) in named_layers(kind, names).items():
        weight = comfy_models.state_dict(kind)[f"{layer}.weight"]
        place = truth.setdefault(f"diffusion_model.{layer}.weight", torch.zeros_like(weight))
        place = place if part is None else place.narrow(*part)
        up, down = low_rank(place.shape, 3, generator)
        tensors[f"{spell(name)}.{up_ending}"], tensors[f"{spell(name)}.{down_ending}"] = up, down
        place += (up.flatten(1) @ down.flatten(1)).view_as(place)
    return tensors, truth


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_family_of_names_is_applied(family, kind):
    tensors, truth = file_and_truth(family, kind)
    if not tensors:
        pytest.skip("this version of the host has no table of diffusers' names for it")
    model = comfy_models.load(kind)
    updates, report = fit(model, tensors)
    assert not report.text()
    assert_same(changes(model.model, updates), truth)
    hosts = host_changes(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, 1.0)
    for name, change in hosts.items():  # where the host knows the name, it means the same weight
        assert_same({name: truth[name]}, {name: change})


def test_the_corpus_is_large_and_many_of_its_files_load_nowhere_in_the_host():
    assert len(CASES) >= 80
    nowhere = 0
    for family, kind in CASES:
        tensors, _ = file_and_truth(family, kind)
        model = comfy_models.load(kind)
        nowhere += bool(tensors) and not comfy.lora.load_lora(
            tensors, comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False
        )
    assert nowhere >= 20


# Files of which a part has no place in the model: (base, source, keys beside the good ones, words of the report).
PARTIAL = {
    "a Flux LoRA of all layers on Chroma": (
        "chroma",
        {f"lora_unet_double_blocks_{i}_{part}_mod_lin": (8, 8) for i in range(2) for part in ("img", "txt")},
        "2 of 6 layers applied. Skipped: 4 that this model does not have",
    ),
    "an image-to-video LoRA on text-to-video": (
        "wan",
        {f"diffusion_model.blocks.{i}.cross_attn.{part}_img": (8, 8) for i in range(2) for part in ("k", "v")},
        "2 of 6 layers applied. Skipped: 4 that this model does not have",
    ),
    "musubi LTX's projection": (
        "wan",
        {"text_embedding_projection.video": (8, 8)},
        "2 of 3 layers applied. Skipped: 1 that this model does not have (text_embedding_projection.video)",
    ),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_the_part_of_a_file_that_fits_is_applied(name):
    kind, more, words = PARTIAL[name]
    tensors, truth = file_and_truth("ComfyUI", kind)
    for key, (rows, columns) in more.items():
        tensors |= {f"{key}.lora_up.weight": torch.ones(rows, 2), f"{key}.lora_down.weight": torch.ones(2, columns)}
    model = comfy_models.load(kind)
    updates, report = fit(model, tensors)
    assert words in report.text()
    assert_same(changes(model.model, updates), truth)
