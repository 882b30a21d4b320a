"""The step to which a noise level belongs."""

import pytest
from diffusion_blend.nodes.engine.steps import step_of

FALLING = [10.0, 5.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("sigma", "step"),
    [(10.0, 0), (7.0, 0), (5.0, 1), (5.0001, 1), (3.0, 1), (2.0, 2), (0.5, 2), (0.0, 2), (12.0, 0)],
)
def test_a_step_starts_at_its_level_and_ends_before_the_next(sigma, step):
    assert step_of(sigma, FALLING) == step


def test_rising_schedules_count_from_their_start():
    assert [step_of(sigma, FALLING[::-1]) for sigma in (0.0, 1.0, 2.0, 4.0, 5.0, 9.0)] == [0, 0, 1, 1, 2, 2]
