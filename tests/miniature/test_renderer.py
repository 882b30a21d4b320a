"""The renderer against the parser, which knows nothing of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusion_blend.miniature import language
from diffusion_blend.miniature.grading import grade
from diffusion_blend.miniature.parser import parse
from diffusion_blend.miniature.renderer import clearance, render, sample_scene
from diffusion_blend.miniature.sizes import SIZE


def draw(kind: str, count: int, seed: int):
    generator = np.random.default_rng(seed)
    wanted = [language.sample(generator, kind=kind) for _ in range(count)]
    scenes = [sample_scene(description, generator) for description in wanted]
    return wanted, scenes, render(scenes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", language.KINDS)
def test_the_parser_reads_back_what_was_drawn(kind):
    wanted, scenes, pictures = draw(kind, 100, seed=3)
    for description, scene, found in zip(wanted, scenes, parse(pictures), strict=True):
        things = sorted((thing.colour, thing.shape) for thing in description.things)
        assert sorted((seen.colour, seen.shape) for seen in found) == things
        for shape in scene.shapes:
            near = min(max(abs(seen.x - shape.x), abs(seen.y - shape.y)) for seen in found)
            # A triangle's bounding box is not centred on its centroid: .325 of its radius above, at most 2.8 pixels.
            assert near < 1.0 + 0.33 * shape.radius * (shape.shape == 2)
        assert grade(found, description).exact


def test_positions_are_as_told():
    generator = np.random.default_rng(5)
    for _ in range(200):
        description = language.sample(generator, kind="related")
        first, second = sample_scene(description, generator).shapes
        assert clearance(str(description.relation), (first.x, first.y), (second.x, second.y)) >= 4
    assert clearance("above", (3, 2), (3, 9)) == 7 == -clearance("below", (3, 2), (3, 9))
    assert clearance("left of", (2, 1), (9, 1)) == 7 == -clearance("right of", (2, 1), (9, 1))
    with pytest.raises(ValueError, match="'beside' is neither"):
        clearance("beside", (0, 0), (0, 0))


def test_pictures_are_a_function_of_scene_and_generator():
    _, scenes, pictures = draw("pair", 8, seed=1)
    assert pictures.shape == (8, 3, SIZE, SIZE)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, render(scenes, torch.Generator().manual_seed(1)))
    assert not torch.equal(pictures, render(scenes, torch.Generator().manual_seed(2)))


def test_areas_are_those_of_geometry():
    # Hard edges, black on white: the painted area is the area of the formula, shape by shape.
    _, scenes, _ = draw("single", 30, seed=2)
    formula = (lambda r: np.pi * r**2, lambda r: np.pi * r**2, lambda r: 3 * 3**0.5 / 4 * (1.3 * r) ** 2)
    for scene in scenes:
        shape = replace(scene.shapes[0], rgb=(0.0, 0.0, 0.0))
        flat = replace(scene, shapes=(shape,), background=(1.0, 1.0, 1.0), slope=(0.0, 0.0), grain=0.0, softness=1.0)
        painted = (1 - render([flat], torch.Generator())[0, 0]).sum().item()
        assert painted == pytest.approx(formula[shape.shape](shape.radius), rel=0.04)


def test_the_style_does_not_touch_what_is_told():
    # Same things, other background: the parser sees the same.
    wanted, scenes, _ = draw("counted", 20, seed=4)
    plain = [replace(scene, background=(0.2, 0.2, 0.2), slope=(0.0, 0.0), grain=0.0) for scene in scenes]
    for description, found in zip(wanted, parse(render(plain, torch.Generator())), strict=True):
        assert grade(found, description).exact


def test_the_parser_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\], got \[1, 3, 16, 16\]"):
        parse(torch.zeros(1, 3, 16, 16))
    assert parse(torch.full((1, 3, 32, 32), 0.5)) == [[]]
