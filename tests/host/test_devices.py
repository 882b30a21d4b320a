"""The host's copies of a blended MODEL for further devices, and the adapters in its memory management."""

import comfy.model_patcher
import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, preference


def test_the_adapters_patcher_is_of_the_hosts_own_kind(sd3):
    (bank,) = blend_model(sd3.model, sd3.loras(2), preference(1, 1)).get_additional_models_with_key("diffusion_blend")
    assert type(bank) is getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def test_the_hosts_copy_for_another_device_blends_as_the_first(sd3):
    """As the split of a model over several GPUs; the other device is the CPU again."""
    if not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"):
        pytest.skip("this host does not split a model over devices")
    tensors = comfy_models.state_dict("sd3")
    base = comfy_models.load_tensors(tensors, dtype=torch.float32)
    base.cached_patcher_init = (lambda: comfy_models.load_tensors(tensors, dtype=torch.float32), ())
    blended = blend_model(base, sd3.loras(2), preference(0.3, 0.7))
    expected = sd3.sample(blended)
    copied = blended.deepclone_multigpu(torch.device("cpu"))
    assert copied.model is not blended.model
    (first,), (second,) = (each.get_additional_models_with_key("diffusion_blend") for each in (blended, copied))
    assert first.model is not second.model
    assert difference(sd3.sample(copied), expected) < 1e-6
    assert hooks_on(copied) == hooks_on(blended) == 0
