"""Kinds of models: small networks of true architecture, other dtypes of the weights, custom operations, partial loading.

The truth is always the host's own patching of a float32 copy with the same numbers as the checkpoint. Most of these tests run
only by ``pytest -m full tests/host/test_models.py``.
"""

import comfy.ops
import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import JOINT, Patched, hooks_on, kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from torch import nn

ENDINGS = {
    "sd2": ("attn1.to_q", "attn2.to_v", "proj_in", "in_layers.2"),
    "inpaint": ("attn1.to_q", "attn2.to_v", "proj_in", "input_blocks.0.0"),
    "flux": ("img_attn.qkv", "txt_attn.proj", "img_mlp.0", "linear1", "linear2"),
    "wan": ("self_attn.q", "cross_attn.k", "ffn.0", "patch_embedding"),
    "sd3": JOINT,
}
WEIGHTS = (0.3, 0.7)
KL_SCALE = 1.3


@pytest.fixture
def pair(loras_folder):
    """Make the blend of two adapters on a MODEL, and its reference on float32 copies of the given weights."""

    def make(kind, model=None, tensors=None, on_top_of=(), **options):
        adapters = [kohya(kind, seed, rank=3, endings=ENDINGS[kind]) for seed in (1, 2)]
        files = [f"{kind}-small-{i}" for i in range(2)]
        for file, adapter in zip(files, adapters, strict=True):
            write(loras_folder, file, adapter)
        loras = load_loras([f"{file}.safetensors" for file in files])
        patched = Patched(kind, tensors)
        model = model or patched.model()
        blended = blend_model(model, loras, preference(*WEIGHTS, kl_scale=KL_SCALE), **options)
        coefficients = [KL_SCALE * weight for weight in WEIGHTS]
        return blended, patched.blended(adapters, coefficients, on_top_of), patched.model(*on_top_of)

    return make


def images(kind, model, conditionings=None, steps=2, batch=2):
    positive, negative = conditionings or (comfy_models.conditioning(kind, 1), comfy_models.conditioning(kind, 2))
    latent = comfy_models.latent(kind, batch)
    return host_nodes.common_ksampler(model, 5, steps, 4.0, "euler", "normal", positive, negative, latent)[0]["samples"]


def check(kind, models, tolerance=1e-4, **run):
    """Check that the blend equals its reference and differs from the base."""
    blended, reference, base = models
    expected = images(kind, reference, **run)
    assert bool(torch.isfinite(expected).all())
    assert difference(images(kind, base, **run), expected) > 1e-2
    assert difference(images(kind, blended, **run), expected) < tolerance
    assert hooks_on(blended) == 0
    return expected


@pytest.mark.full
@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_transformers(pair, kind, evaluation):
    """Flux with guidance and fused layers, and a video model with five dimensions and a 3-d convolution for its patches."""
    check(kind, pair(kind, evaluation=evaluation))


@pytest.mark.full
def test_sd2_predicts_v(pair, monkeypatch):
    import comfy.model_base
    import comfy.supported_models

    # The host recognises v-prediction by a weight of a block that the shallow network lacks.
    prediction = comfy.model_base.ModelType.V_PREDICTION
    monkeypatch.setattr(comfy.supported_models.SD20, "model_type", lambda *_, **__: prediction)
    models = pair("sd2", evaluation="batched")
    assert models[0].model.model_type is prediction
    check("sd2", models)


@pytest.mark.full
@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
def test_inpainting_checkpoint_with_concatenated_channels(pair, evaluation):
    import node_helpers

    generator = torch.Generator().manual_seed(3)
    values = {
        "concat_latent_image": torch.randn(1, 4, 8, 8, generator=generator),
        "concat_mask": (torch.rand(1, 1, 64, 64, generator=generator) > 0.5).float(),
    }
    plain = [comfy_models.conditioning("inpaint", seed) for seed in (1, 2)]
    conditionings = [node_helpers.conditioning_set_values(part, values) for part in plain]
    models = pair("inpaint", evaluation=evaluation)
    expected = check("inpaint", models, conditionings=conditionings, steps=1)
    if evaluation == "batched":  # the concatenated channels change the image
        assert difference(images("inpaint", models[1], conditionings=plain, steps=1), expected) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
def test_editing_with_a_reference_latent(pair, evaluation):
    """In Flux Kontext the reference's tokens follow the image's."""
    import node_helpers

    reference = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    plain = [comfy_models.conditioning("flux", seed) for seed in (1, 2)]
    conditionings = [node_helpers.conditioning_set_values(part, {"reference_latents": [reference]}) for part in plain]
    models = pair("flux", evaluation=evaluation)
    expected = check("flux", models, conditionings=conditionings)
    assert difference(images("flux", models[1]), expected) > 1e-3


def stored(tensors, change):
    """Return the weights after a change of every matrix, in float32. These are the numbers in a smaller checkpoint."""
    return {name: change(tensor) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}


@pytest.mark.full
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float8_e4m3fn],
    ids=str,
)
def test_weights_kept_in_a_smaller_dtype(pair, dtype):
    """On a CPU, which has no faster way, the host computes with such weights in float32."""
    tensors = comfy_models.state_dict("sd3")
    model = comfy_models.load_tensors(tensors, dtype=dtype)
    assert model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1.weight.dtype == dtype
    rounded = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
    check("sd3", pair("sd3", model, rounded, evaluation="batched"))


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)], ids=str)
def test_computing_in_a_smaller_dtype(pair, dtype, tolerance, monkeypatch):
    """The blend is no further from the float32 truth than the host's own copies in the same dtype."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_, **__: None)
    model = comfy_models.load_tensors(comfy_models.state_dict("sd3"), dtype=dtype)
    assert model.model.manual_cast_dtype is None
    models = pair("sd3", model)
    (bank,) = models[0].get_additional_models_with_key("diffusion_blend")
    assert {parameter.dtype for parameter in bank.model.parameters()} == {dtype}
    check("sd3", models, tolerance)


def scaled_fp8(tensors):
    """Return weights as in scaled fp8 checkpoints, and their numbers in float32."""
    checkpoint, meant = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in tensors.items():
        checkpoint[name] = meant[name] = tensor
        if name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            checkpoint[name] = (tensor / scale).to(torch.float8_e4m3fn)
            checkpoint[name.replace(".weight", ".scale_weight")] = scale
            meant[name] = checkpoint[name].float() * scale
    return checkpoint, meant


def test_scaled_fp8_weights(pair):
    checkpoint, meant = scaled_fp8(comfy_models.state_dict("sd3"))
    model = comfy_models.load_tensors(checkpoint)
    layer = model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
    assert torch.float8_e4m3fn in {layer.weight.dtype, getattr(layer.weight, "_qdata", layer.weight).dtype}
    held = model.model.diffusion_model.state_dict()
    # 0.3.64 keeps these layers' biases in fp8 too.
    meant |= {name: held[name].float() for name, tensor in meant.items() if tensor.ndim == 1}
    check("sd3", pair("sd3", model, meant, evaluation="batched"), tolerance(model), steps=1)


def tolerance(model):
    """Return the tolerance for the dtype in which the host computes."""
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return {torch.float16: 1e-2, torch.bfloat16: 8e-2}.get(dtype, 1e-4)


def int8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Operations(comfy.ops.manual_cast):
    """Stores bytes and scales and computes the weights at every call, as GGUF packs do."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            quantised, scale = int8(state_dict[prefix + "weight"])
            self.register_buffer("scale", scale)
            self.weight = nn.Parameter(quantised, requires_grad=False)
            if prefix + "bias" in state_dict:
                self.bias = nn.Parameter(state_dict[prefix + "bias"], requires_grad=False)

        def forward_comfy_cast_weights(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.mark.full
def test_custom_operations_that_dequantise_at_every_call(pair):
    tensors = comfy_models.state_dict("sd3")
    model = comfy_models.load_tensors(tensors, dtype=torch.float32, custom_operations=Int8Operations)
    assert model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1.weight.dtype == torch.int8
    linear = {
        f"{name}.weight"
        for name, module in model.model.diffusion_model.named_modules()
        if isinstance(module, Int8Operations.Linear)
    }
    meant = dict(tensors)
    for name in linear:
        quantised, scale = int8(tensors[name])
        meant[name] = quantised.float() * scale
    check("sd3", pair("sd3", model, meant, evaluation="batched"))


def test_a_partly_loaded_model_with_a_lora_of_its_own(pair, loras_folder, monkeypatch):
    """The host leaves most weights on the CPU and patches them at every call with the base's LoRA."""
    import comfy.model_management

    (name, below) = ("base-lora", kohya("sd3", 8))
    write(loras_folder, name, below)
    base = comfy_models.load_tensors(comfy_models.state_dict("sd3"), dtype=torch.float32)
    (base,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(base, f"{name}.safetensors", 1.0)
    models = pair("sd3", base, on_top_of=[below])
    load = comfy.model_management.LoadedModel.model_load

    def little(loaded, *args, **kwargs):
        if loaded.model.is_clone(base):
            return load(loaded, 2_000_000, **kwargs)
        return load(loaded, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", little)
    check("sd3", models, steps=1)
    modules = list(models[0].model.modules())
    patched = sum(len(getattr(module, "weight_function", ())) for module in modules)
    assert models[0].model.model_lowvram
    assert models[0].model.lowvram_patch_counter > 0
    assert patched > 0
