"""Nodes that draw random numbers inside the network: each row of gates gets the numbers that a plain call gets."""

import pytest
import torch
from comfy_world import blend_model, difference, load_loras, preference


def noisy(model):
    """Add noise from torch's own generator to every attention output, as token merging draws its tokens."""
    changed = model.clone()
    changed.set_model_attn1_output_patch(lambda output, _: output + 0.2 * torch.randn_like(output))
    return changed


@pytest.mark.parametrize("method", ["blend", "early"])
def test_two_equal_adapters_are_that_adapter_alone(sd15, method):
    """No row's draw differs from another's, and the generator ends where a plain run leaves it."""
    expected = sd15.sample(noisy(sd15.patched.model(sd15.adapters[0])))
    after = torch.rand(4)
    twice = load_loras([sd15.files[0]] * 2)
    options = {"early_share": 0.3} if method == "early" else {}
    blended = sd15.sample(blend_model(noisy(sd15.model), twice, preference(0.3, 0.7), method, **options))
    assert difference(blended, expected) < 1e-4
    assert torch.equal(torch.rand(4), after)


def test_a_blend_is_the_sum_of_copies_with_the_same_draws(sd15):
    weights = (0.3, 0.7)
    expected = sd15.sample(sd15.patched.blended(sd15.adapters[:2], weights, like=noisy(sd15.model)))
    blended = sd15.sample(blend_model(noisy(sd15.model), sd15.loras(2), preference(*weights), evaluation="batched"))
    assert difference(blended, expected) < 1e-4
