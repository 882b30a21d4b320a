"""The settings of the training algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..artifacts.settings import bounded


@dataclass(frozen=True)
class AlgorithmConfig:
    """How the adapter learns.

    Attributes:
        name: dpok (KL to the base, per-prompt means and a value function, replay buffer), ddpo (no KL, per-prompt statistics,
            fresh data), grpo (groups of images a prompt, fresh data), nft (DiffusionNFT: regression on better against worse
            images of a prompt, no log-probabilities), rwr (reward-weighted regression: score matching on the base's samples,
            weighted by exp(reward / kl_weight); no policy gradient, so far fewer samples, but only what the base already makes
            can be reinforced), or draft (the gradient of reward and KL through the sampler: least noise by far, for
            differentiable rewards only).
        kl_weight: alpha of the objective reward - alpha * KL, in reward units per nat (grpo: standard deviations per nat;
            nft: factor of the squared x0 distance to the base), the KL summed over all steps
            and latent elements. 0 removes the penalty (over-optimisation); large values freeze the model. The value 0.1 of
            DPOK's code is about 0.001 here (0.01 for its single-prompt preset). For all but ddpo; rwr needs it
            above 0, and several samples a prompt (the log's effective_share says how many count).
        kl_in_return: count later steps' KL in a step's return, which makes the gradient exact, and measure the base
            at every sampling step (sampling takes twice the time). False leaves it out, as DPOK's code does.
        clip: hard (DPOK: no gradient outside the range) or ppo (the minimum of both).
        clip_range: allowed change of a step's likelihood ratio between sampling and update. Near 0 stops learning,
            above 1 hardly limits it. DPOK's and DDPO's 1e-4 is per latent element: the true ratio of a 4x64x64
            latent is its 16384th power, so theirs is about 1.6 in log-ratio here.
        buffer: denoising steps (dpok) or images (rwr) kept per process. A buffer larger than one iteration's data re-uses
            older data. In rwr older data is never stale, because the base does not change.
        updates: optimizer steps per iteration (dpok, rwr, nft). More learn faster from stale data.
        recompute: run each denoising step and the decoder again in the backward pass instead of keeping their activations
            (draft): a third more time, and memory for one step and a few decoded images instead of all.
        draft_steps: the last K steps through which the gradient goes (DRaFT-K); 0 takes all. 1 is cheapest and changes
            details only. The KL counts these steps.
        draft_noises: with draft_steps 1, noises for the last step of each image (DRaFT-LV). 1 is plain; 2 is the authors'.
        control_variate: half of each batch subtracts the part of the gradient that does not depend on the reward, which
            is the sampler's own error (rwr). False is plain regression, which shrinks and softens images
            at few steps.
        epochs: passes over the fresh data per iteration (ddpo, grpo).
        statistics_window: rewards remembered per prompt (dpok, ddpo).
        statistics_minimum: rewards of a prompt needed before its own statistics are used (ddpo).
        advantage_clip: largest advantage in standard deviations (ddpo, grpo). Small values mute outliers.
        group: images of one prompt that are compared with each other (grpo, nft). More give a better baseline.
        nft_strength: how far the implicit policies are from the sampling policy (nft), above 0; the authors' beta.
        nft_spread: standard deviations above a group's mean at which an image counts as wholly good (nft).
        nft_decay: largest share of the old sampling policy that stays after an iteration (nft); 0 samples from the newest.
        stacked: train one adapter for each of the rewards, made to be stacked: every image has a preference w of its own, drawn
            from the simplex (a quarter are corners; the others are uniform over the preferences of two or more rewards, see
            training/stacking.py). The adapters are added with strengths w, and the image's reward is the sum of the rewards,
            each times its weight in ``rewards`` (its scale) and times w. The m files, plainly stacked at strengths w, are the
            model for that mixture, at one call a step. For all algorithms but ddpo.
        separate: train one adapter for each of the rewards in one run, each for its reward alone. The run is that of ``stacked``
            with preferences that are corners only, so the base is loaded once, and rwr samples it once for all rewards.
    """

    name: str = "dpok"
    kl_weight: float = bounded(0.001, minimum=0)
    kl_in_return: bool = True
    clip: Literal["hard", "ppo"] = "hard"
    clip_range: float = bounded(0.2, above=0)
    buffer: int = bounded(1000, minimum=1)
    updates: int = bounded(5, minimum=1)
    control_variate: bool = True
    recompute: bool = True
    draft_steps: int = bounded(0, minimum=0)
    draft_noises: int = bounded(1, minimum=1)
    epochs: int = bounded(1, minimum=1)
    statistics_window: int = bounded(16, minimum=1)
    statistics_minimum: int = 16
    advantage_clip: float = bounded(5.0, above=0)
    group: int = bounded(8, minimum=2)
    nft_strength: float = bounded(1.0, above=0)
    nft_spread: float = bounded(1.0, above=0)
    nft_decay: float = bounded(0.5, minimum=0, maximum=1)
    stacked: bool = False
    separate: bool = False

    @property
    def adapter_per_reward(self) -> bool:
        """Whether each reward has an adapter of its own."""
        return self.stacked or self.separate
