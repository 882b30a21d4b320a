"""Images of every kind of adapter on every architecture: the blend equals the host's own LoRA loader.

A quick selection runs by default, and all pairs by ``pytest -m full tests/host/test_kind_images.py``. Every test runs in torch's
inference mode, as the host's nodes do.
"""

import json

import comfy.model_management
import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import Patched, hooks_on, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.from_model import RewardLoRAFromModel
from kind_files import KINDS, file_of

ARCHITECTURES = ("sd15", "sdxl", "sd3", "flux", "chroma", "qwen", "zimage", "wan")
ONLY = {  # architectures with such parts; every other kind is for all
    "Tucker core": ("sd15", "sdxl"),
    "norm": ("sd15", "sdxl", "flux", "chroma", "qwen", "zimage", "wan"),
    "parameter of no layer": ("sd3", "wan"),
}
EVERY = [(architecture, kind) for kind in KINDS for architecture in ONLY.get(kind, ARCHITECTURES)]
QUICK = [("zimage", "norm"), ("wan", "parameter of no layer"), ("sdxl", "Tucker core")]
QUICK += [(ARCHITECTURES[i % 8], kind) for i, kind in enumerate(KINDS) if kind not in ONLY]
# The first of a pair may read the base's weights, the second may not.
PAIRS = [("DoRA", "LoKr, whole"), ("OFT", "bias"), ("GLoRA", "LoHa of full rank"), ("weights that replace", "LoRA")]
EVERY_PAIR = [(architecture, pair) for architecture in ARCHITECTURES for pair in PAIRS]
QUICK_PAIRS = [(architecture, PAIRS[i % 4]) for i, architecture in enumerate(ARCHITECTURES)]
EVALUATIONS = ("sequential", "batched")
EVERY_BLEND = [(*case, evaluation) for case in EVERY_PAIR for evaluation in EVALUATIONS]
QUICK_BLENDS = [(*case, EVALUATIONS[i // 4]) for i, case in enumerate(QUICK_PAIRS)]
WEIGHTS = (0.3, 0.7)


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
            pytest.skip(f"this version's {architecture} has no part for the kind {kind}")
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

    The host reads differences of parameters beside the layers, as Wan's `modulation`, but its loader leaves them out. Here
    its own function for one parameter patches them.
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


@pytest.mark.parametrize(("architecture", "kind"), both(EVERY, [("sd3", "DoRA")]))
def test_a_chain_of_loaders_as_one_adapter_is_that_chain(architecture, kind, files, patched):
    plain = patched(architecture).model()
    name, _ = files(architecture, kind)
    second, _ = files(architecture, "LoRA", 2)
    chained = loaded_by_the_host(plain, name)
    (chained,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(chained, second, 0.6)
    loras = RewardLoRAFromModel.execute(plain, chained, "both").args[0]
    comfy.model_management.load_models_gpu([chained])
    for key in chained.patches.keys() - chained.backup.keys():
        chained.patch_weight_to_device(key)
    expected = image(architecture, chained)
    blended = blend_model(plain, loras, preference(1.0))
    assert difference(image(architecture, blended), expected) < 1e-5


@pytest.mark.parametrize(("architecture", "pair", "evaluation"), both(EVERY_BLEND, QUICK_BLENDS[::2]))
def test_a_blend_of_two_kinds_is_the_sum_of_the_hosts_copies(architecture, pair, evaluation, files, patched):
    copies = patched(architecture)
    names, adapters = zip(*(files(architecture, kind, seed) for seed, kind in enumerate(pair, 1)), strict=True)
    expected = image(architecture, copies.blended(adapters, WEIGHTS))
    plain = copies.model()
    assert difference(image(architecture, plain), expected) > 1e-3
    blended = blend_model(plain, load_loras(names), preference(*WEIGHTS), evaluation=evaluation)
    assert difference(image(architecture, blended), expected) < 1e-4


@pytest.mark.parametrize(("architecture", "pair"), both(EVERY_PAIR, QUICK_PAIRS[2:8:4]))
def test_stochastic_gives_each_image_one_of_the_files(architecture, pair, files, patched):
    copies = patched(architecture)
    names, adapters = zip(*(files(architecture, kind, seed) for seed, kind in enumerate(pair, 1)), strict=True)
    singles = [image(architecture, copies.model(tensors), batch=4, steps=1) for tensors in adapters]
    blended = blend_model(copies.model(), load_loras(names), preference(0.5, 0.5), "stochastic")
    got = image(architecture, blended, batch=4, steps=1)
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) / single.abs().max() for single in singles])
    assert float(errors.amin(0).max()) < 1e-5
    assert set(errors.argmin(0).tolist()) == {0, 1}


@pytest.mark.parametrize(("architecture", "kind"), both([("zimage", "norm"), ("wan", "norm")], [("zimage", "norm")]))
def test_stochastic_with_a_norm_that_a_fused_kernel_reads(architecture, kind, files, patched):
    """The images of a call share such a weight, so each adapter that is drawn has a call of its own."""
    copies = patched(architecture)
    names, adapters = zip(*(files(architecture, kind, seed) for seed in (1, 2)), strict=True)
    singles = [image(architecture, copies.model(tensors), batch=4, steps=1) for tensors in adapters]
    blended = blend_model(copies.model(), load_loras(names), preference(0.5, 0.5), "stochastic")
    got = image(architecture, blended, batch=4, steps=1)
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) / single.abs().max() for single in singles])
    assert float(errors.amin(0).max()) < 1e-5
    assert set(errors.argmin(0).tolist()) == {0, 1}


# Bases of which the host keeps the weights in 8 bits, as a checkpoint and in the numbers that it stands for.


def in_fp8():
    tensors = comfy_models.state_dict("sd3")
    meant = {name: tensor.to(torch.float8_e4m3fn).float() for name, tensor in tensors.items()}
    return comfy_models.load_tensors(tensors, dtype=torch.float8_e4m3fn), meant


def in_the_hosts_form(form):
    """Quantise as the host's own files, with a flag for products in full precision, so that the truth is exact."""
    forms = pytest.importorskip("comfy.quant_ops", reason="this version of the host has no quantised tensors")
    if form not in forms.QUANT_ALGOS:
        pytest.skip("this version of the host does not know this form")
    label = json.dumps({"format": form, "full_precision_matrix_mult": True})
    checkpoint, meant = {}, {}
    for name, tensor in comfy_models.state_dict("sd3").items():
        checkpoint[name] = meant[name] = tensor
        if name.endswith(("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")):
            in_rows = form == "int8_tensorwise"
            scale = tensor.abs().amax(1, keepdim=True) / 127 if in_rows else tensor.abs().max() / 448
            stored = (tensor / scale).round().to(torch.int8) if in_rows else (tensor / scale).to(torch.float8_e4m3fn)
            meant[name] = stored.float() * scale
            layer = name.removesuffix("weight")
            checkpoint |= {name: stored, f"{layer}weight_scale": scale}
            checkpoint[f"{layer}comfy_quant"] = torch.tensor(list(label.encode()), dtype=torch.uint8)
    return comfy_models.load_tensors(checkpoint), meant


BASES = {
    "fp8": in_fp8,
    "fp8 with scales": lambda: in_the_hosts_form("float8_e4m3fn"),
    "int8": lambda: in_the_hosts_form("int8_tensorwise"),
}


@pytest.mark.parametrize(
    ("base", "pair"),
    both([(base, pair) for base in BASES for pair in PAIRS], [(base, PAIRS[i]) for i, base in enumerate(BASES)]),
)
def test_kinds_on_bases_of_8_bits(base, pair, files):
    model, meant = BASES[base]()
    names, adapters = zip(*(files("sd3", kind, seed) for seed, kind in enumerate(pair, 1)), strict=True)
    copies = Patched("sd3", meant)
    expected, plain = image("sd3", copies.blended(adapters, WEIGHTS)), image("sd3", copies.model())
    blended = blend_model(model, load_loras(names), preference(*WEIGHTS))
    # The host's int8 layers round their inputs, too: the base without adapters shows by how much.
    tolerance = max(1e-4, 2 * difference(image("sd3", model), plain))
    assert tolerance < 2e-2
    assert difference(image("sd3", blended), expected) < tolerance
    assert difference(plain, expected) > 5 * tolerance


@pytest.mark.parametrize(("pair",), both([(pair,) for pair in PAIRS], [(PAIRS[0],)]))
def test_kinds_on_a_partly_loaded_base_with_a_lora_of_its_own(pair, files, monkeypatch):
    below_name, below = files("sd3", "LoRA", 3)
    base = comfy_models.load_tensors(comfy_models.state_dict("sd3"), dtype=torch.float32)
    (base,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(base, below_name, 1.0)
    names, adapters = zip(*(files("sd3", kind, seed) for seed, kind in enumerate(pair, 1)), strict=True)
    expected = image("sd3", Patched("sd3").blended(adapters, WEIGHTS, on_top_of=[below]))
    load = comfy.model_management.LoadedModel.model_load

    def little(loaded, *args, **kwargs):
        if loaded.model.is_clone(base):
            return load(loaded, 2_000_000, **kwargs)
        return load(loaded, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", little)
    blended = blend_model(base, load_loras(names), preference(*WEIGHTS))
    assert difference(image("sd3", blended), expected) < 1e-4
    assert blended.model.model_lowvram
    assert any(len(getattr(module, "weight_function", ())) for module in blended.model.modules())


def test_the_hosts_nodes_and_these_tests_run_in_inference_mode():
    assert torch.is_inference_mode_enabled()
