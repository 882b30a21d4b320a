"""Kernels of the host that compute a layer from its weight, without a call of the layer."""

import comfy.ops
import comfy_models
import pytest
from comfy_adapters import Patched, kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from nodes import common_ksampler
from torch.nn import functional

WEIGHTS = (0.3, 0.7)


@pytest.fixture
def int8_kernel(monkeypatch):
    """Let the host take its kernel for int8 layers, with an activation before the layer: a double in float32."""
    if not hasattr(comfy.ops, "linear_input_act"):
        pytest.skip("this host has no such kernel")
    taken = []

    def kernel(linear, x, input_act):
        assert input_act == "gelu_tanh"
        taken.append(linear)
        return functional.linear(functional.gelu(x, approximate="tanh"), linear.weight, linear.bias)

    monkeypatch.setattr(comfy.ops, "linear_input_act", kernel)
    return taken


@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
def test_a_layer_inside_a_kernel_has_its_adapters(int8_kernel, loras_folder, evaluation):
    """Wan's ``ffn.2``. Layers without adapters stay in the kernel, and the kernel is back after the run."""
    adapters = [kohya("wan", seed, endings=("0.ffn.2",)) for seed in (41, 42)]
    for number, tensors in enumerate(adapters):
        write(loras_folder, f"kernel-{number}", tensors)
    patched, kernel = Patched("wan"), comfy.ops.linear_input_act

    def sample(model):
        conditionings = [comfy_models.conditioning("wan", seed) for seed in (1, 2)]
        return common_ksampler(model, 5, 2, 4.0, "euler", "normal", *conditionings, comfy_models.latent("wan"))[0][
            "samples"
        ]

    expected = sample(patched.blended(adapters, WEIGHTS))
    plain = patched.model()
    assert difference(sample(plain), expected) > 1e-3
    blocks = plain.model.diffusion_model.blocks
    int8_kernel.clear()
    loras = load_loras([f"kernel-{number}.safetensors" for number in range(2)])
    blended = sample(blend_model(plain, loras, preference(*WEIGHTS), evaluation=evaluation))
    assert difference(blended, expected) < 1e-4
    assert {id(layer) for layer in int8_kernel} == {id(block.ffn[2]) for block in blocks[1:]}
    assert comfy.ops.linear_input_act is kernel
