"""The method early in the sweep: residuals of x0, for every prediction type of the network."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.blending.plans import EarlyBlend
from diffusion_blend.blending.step_info import StepInfo
from diffusion_blend.evaluation.sweep.steps import PlannedWithResidual
from diffusion_blend.training.ddim import ddim_steps

COUNT = 5
BLENDED = {0.4: (0, 1), 0.8: (0, 1, 3)}
TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])


@pytest.mark.parametrize("share", BLENDED)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_residual_of_x0_decays_with_the_noise(
    kind: Literal["epsilon", "v_prediction", "sample"], share: float
) -> None:
    scheduler: Any = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(COUNT)
    steps = ddim_steps(scheduler.alphas_cumprod.double(), TIMESTEPS, 1.0, 1.0, kind)
    stepper = PlannedWithResidual(EarlyBlend((0.5, 0.5), share))
    torch.manual_seed(0)
    outputs = torch.randn(COUNT, 3, 2, 3, 4, 4, dtype=torch.float64)  # of adapter 1, adapter 2 and the soup
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    rows = {(1.0, 0.0): 0, (0.0, 1.0): 1, (0.5, 0.5): 2}
    residual, level, before = torch.zeros(()), 1.0, None
    for index in range(COUNT):

        def x0(output: torch.Tensor, index: int = index) -> torch.Tensor:
            return scheduler.step(output, int(TIMESTEPS[index]), latents).pred_original_sample

        state: Any = SimpleNamespace(
            index=index,
            steps=steps,
            info=StepInfo(index, COUNT, images=(0, 1)),
            predict=lambda row, index=index: outputs[index, rows[row[0]]],
            mean=lambda output: output,
            std=lambda: 0.0,
        )
        got = stepper(state).mean
        alpha_bar = float(scheduler.alphas_cumprod[TIMESTEPS[index]])
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
        blend, soup = x0(outputs[index, :2].mean(0)), x0(outputs[index, 2])
        if index in BLENDED[share]:
            if index - 1 not in BLENDED[share] and index > 0:  # the residual so far is that of the step before
                before = residual, level
            residual, level = blend - soup, sigma
            torch.testing.assert_close(x0(got), blend)
        else:
            expected = residual
            if before is not None:
                expected = residual + (residual - (level / before[1]) ** 2.5 * before[0]) / 2
            torch.testing.assert_close(x0(got), soup + (sigma / level) ** 2.5 * expected, rtol=1e-5, atol=1e-6)
