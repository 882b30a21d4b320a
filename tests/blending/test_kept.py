"""What a step keeps for later ones, by conditioning however the calls are split."""

import torch
from diffusion_blend.blending.kept import Kept


def levels(sigma, count):
    return torch.full((count,), float(sigma))


def test_each_conditioning_gets_its_own_back_scaled_by_the_noise():
    kept, tensor = Kept(), torch.randn(4, 3, 2, 2)
    kept.keep(["yes", "no"], tensor, levels(4, 4))
    prediction = torch.randn(2, 3, 2, 2)
    moved = kept.recall(["no"], prediction, levels(2, 2), 3.0)
    assert torch.allclose(moved, prediction + tensor[2:] / 8)
    both = kept.recall(["no", "yes"], torch.zeros(4, 3, 2, 2), levels(4, 4), 3.0)
    assert torch.equal(both, torch.cat([tensor[2:], tensor[:2]]))


def test_the_last_one_counts():
    kept = Kept()
    for value, sigma in ((1.0, 8), (2.0, 4)):
        kept.keep(["yes"], torch.full((1, 1), value), levels(sigma, 1))
    assert kept.recall(["yes"], torch.zeros(1, 1), levels(2, 1), 1.0).item() == 1.0


def test_an_unknown_conditioning_or_shape_is_not_moved():
    kept = Kept()
    kept.keep(["yes"], torch.ones(1, 3, 2, 2), levels(4, 1))
    prediction = torch.randn(1, 3, 2, 2)
    assert torch.equal(kept.recall(["no"], prediction, levels(2, 1), 1.0), prediction)
    other = torch.randn(1, 3, 4, 4)
    assert torch.equal(kept.recall(["yes"], other, levels(2, 1), 1.0), other)
