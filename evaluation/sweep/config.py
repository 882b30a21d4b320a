"""The settings of a sweep: meaning, unit, and the effect of extreme values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...artifacts.settings import bounded
from ...training.config import BaseConfig, PromptConfig


@dataclass(frozen=True)
class SweepConfig:
    """Compare methods of blending adapters over preference weights, with the same noise for all of them.

    Attributes:
        output: folder of the sweep, the union of all that was ever asked of it. A sweep found there goes on where it
            stopped, and processes that are started at the same time share the work. Methods, weights, KL scales,
            pictures and rewards may be added. Any other setting that changes pictures or scores is refused. A URL that
            fsspec can write (s3://bucket/sweep, with the library for it installed) gets a copy of the finished folder.
        work_folder: where the work is done if ``output`` is a URL. Processes that share the work share this folder. Empty is
            ``runs/`` and the last part of the URL.
        adapters: name -> ``.safetensors`` LoRA file with kohya keys, in the order of the weights.
        rewards: name -> reward (a known name or module:function). A reward with an adapter's name is the one which
            that adapter stands for: r(w) weighs these. Others are only measured. Rewards may be added to a folder whose
            pictures were all kept (save_images).
        methods: base, blend, stochastic (stratified draws), stochastic-independent, soup, early (blend first, then soup,
            as the node's), factor-soup (the paper's code), msdda, morl, code (blockwise best of N), rgg (reward
            gradients), stacked (adapters trained to be stacked), composite and switch (LoRA Composite and LoRA Switch of
            Zhong et al. 2024, which use the adapters whose weight is above 0 and no preference), cross (the soup with cross
            adapters), distilled (an adapter that was distilled from the blend at w), corrected (the blend with several candidates
            for each picture, resampled by their path weights), conditioned (one adapter that reads the preference from an
            added bias; on the miniature only).
        weights: preference vectors, one number per adapter each; they are divided by their sum.
        grid: also every preference whose weights are multiples of 1/grid; 0 adds none. 4 with two adapters is 0, .25,
            .5, .75, 1; with m adapters it is (grid + m - 1 choose m - 1) points.
        method_weights: method -> preference vectors for that method alone, instead of ``weights`` and ``grid``: for methods
            that are too expensive for all of them.
        kl_scales: distances from the base; 0 is the base, 1 the blend. Only for methods with coefficients; one that a
            method cannot take is left out there with a line.
        images_per_point: pictures of each method, preference and KL scale. The interval's width falls with its square root.
        images_per_prompt: pictures of each prompt at every point, instead of images_per_point; 0 is off.
        steps: denoising steps per picture.
        eta: noise of the steps, 0 (the ODE: no KL can be measured) to 1 (DDPM, the paper's).
        scheduler: diffusers' scheduler class that takes the steps, for example EulerAncestralDiscreteScheduler (ComfyUI's
            euler_ancestral), built from the base's own scheduler configuration. Empty is DDIM with ``eta``, and the SDE of
            flow-matching bases. Another scheduler takes ``eta`` only if its step has one. It tells no distribution of
            its steps: no KL is measured, and methods that need the distribution are refused.
        scheduler_options: entries that replace those of the scheduler's configuration, for example {"use_karras_sigmas": true}.
        guidance_scale: classifier-free guidance; 1 is none (and half the work).
        batch: pictures per network call and per unit of work. Where memory runs out, calls are halved, and the units stay as
            they are. ``auto`` has units of 32 pictures, and begins with calls of 32 on a GPU and of 8 on a CPU. An
            interruption costs at most one unit.
        compile_base: run the plain base, without adapters, through torch.compile: for CoDe, RGG and many pictures of the
            base. The first call takes minutes. Outputs differ in the last digits.
        seed: of the noise. Picture i has prompt ``i mod prompts``; its noise is a function of seed, prompt and ``i div
            prompts`` alone.
        measure_kl: also measure each picture's KL to the base (one more network call a step, timed and counted apart);
            not with a scheduler of one's own.
        reward_units: the units in which weights compare rewards. ``as_given``: rewards as they are;
            unequal KL weights of adapters are reconciled as in the nodes. ``kl_weight``: each reward in units of its adapter's KL
            weight (from the file), for rewards whose scales cannot be compared; coefficients are then the weights.
        affine: reward's name -> [factor, offset]: its score is ``factor * r + offset``, so that rewards have comparable
            scales (the paper's VILA is [4, -2]).
        etas: adapter name -> its own noise scale, for msdda; those not named have ``eta``.
        morl: "w1,w2,..." -> adapter file trained on that very mixture, for morl; only for weights of this sweep.
        stacked: adapter name -> the file of a group that was trained to be stacked, for the method stacked; empty where the
            adapters are themselves such a group.
        cross: the cross adapters of all pairs of the adapters, for the method cross: files of ``bake --method cross``.
        distilled: "w1,w2,..." -> adapter file that was distilled from the blend at that preference (``bake --method distil``),
            for distilled; only for weights of this sweep.
        conditioned: adapter file of ``miniature set2 --only conditioned``, for the method conditioned.
        switch_steps: steps before LoRA Switch takes the next adapter.
        code_block: steps between CoDe's choices. 1 chooses at every step, as many as ``steps`` only at the end.
        code_candidates: pictures CoDe chooses among: about as many times the base's work. 1 is the base.
        rgg_alpha: KL weight in the guidance by reward gradients; small values pull hard and break pictures.
        particles: candidates for each picture of the corrected blend: as many times the blend's work. 1 is the blend.
        resample_below: the effective share of a picture's candidates below which the corrected blend resamples them, 0 to 1.
        save_images: pictures per point that are kept as PNG files and shown in the grid. As many as images_per_point keeps
            all, so that rewards can be added later.
        resamples: of the bootstrap behind the hypervolume's interval.
        reward_folders: reward's name -> local folder with its model, instead of the hub's.
        external_scores: CSV files with scores that another program gave to kept pictures: a column ``picture`` as in
            samples.csv, every other column a reward. The folder keeps a copy.
        claim_expiry: seconds without a sign of life after which another process takes over a unit of work.
        allow_download: permit downloads of the base and the reward models that are not on this machine yet.
        base: the model.
        prompts: to draw.
    """

    output: str
    adapters: dict[str, str]
    rewards: dict[str, str]
    methods: list[str] = field(default_factory=lambda: ["base", "blend", "stochastic", "soup"])
    weights: list[list[float]] = field(default_factory=list)
    grid: int = bounded(0, minimum=0)
    method_weights: dict[str, list[list[float]]] = field(default_factory=dict)
    kl_scales: list[float] = field(default_factory=lambda: [1.0])
    images_per_point: int = bounded(64, minimum=1)
    images_per_prompt: int = bounded(0, minimum=0)
    steps: int = bounded(50, minimum=1)
    eta: float = bounded(1.0, minimum=0, maximum=1)
    scheduler: str = ""
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    guidance_scale: float = 7.5
    batch: int | Literal["auto"] = bounded(8, minimum=1)
    compile_base: bool = False
    seed: int = bounded(0, minimum=0, maximum=2**63 - 1)
    measure_kl: bool = True
    reward_units: Literal["as_given", "kl_weight"] = "as_given"
    affine: dict[str, list[float]] = field(default_factory=dict)
    etas: dict[str, float] = field(default_factory=dict)
    morl: dict[str, str] = field(default_factory=dict)
    stacked: dict[str, str] = field(default_factory=dict)
    cross: list[str] = field(default_factory=list)
    distilled: dict[str, str] = field(default_factory=dict)
    conditioned: str = ""
    switch_steps: int = bounded(5, minimum=1)
    code_block: int = bounded(5, minimum=1)
    code_candidates: int = bounded(20, minimum=1)
    rgg_alpha: float = bounded(0.1, above=0)
    particles: int = bounded(4, minimum=1)
    resample_below: float = bounded(0.5, minimum=0, maximum=1)
    save_images: int = bounded(8, minimum=0)
    resamples: int = bounded(1000, minimum=1)
    reward_folders: dict[str, str] = field(default_factory=dict)
    external_scores: list[str] = field(default_factory=list)
    claim_expiry: float = bounded(300.0, minimum=1)
    allow_download: bool = False
    work_folder: str = ""
    base: BaseConfig = field(default_factory=BaseConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
