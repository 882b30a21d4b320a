"""The node Bake Blend: the soup or the blend of a preference as one LoRA file, for any program that loads LoRAs."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from safetensors.torch import save

from ..blending.file_names import CROSS_END
from ..blending.preference import AnyPreference, Preference
from .adapters.baking import Baked, baked_metadata, finish, sum_updates
from .adapters.files import RewardLoRA, RewardLoRAs
from .adapters.groups import with_crosses
from .adapters.new_files import loras_folder, place, write_new
from .engine.crossing import cross_report, fit_crosses
from .engine.distil import DistilSettings, distil, distilled_metadata, fit_report
from .engine.notices import notify
from .samplers import coefficients_of, or_equal
from .schema import RewardLoRAsType, check_finite, make_schema, model_input, preference_input, reward_loras_input

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
METHODS = ("merge", "distil", "cross")
STEPS, CFG, TRAJECTORIES, ITERATIONS, LEARNING_RATE = 30, 7.5, 8, 200, 3e-4
"""Defaults of the inputs that distil and cross need. Prompts that were saved before these inputs were there still run."""


class BakeBlend(io.ComfyNode):
    """A preference as one LoRA file in the loras folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BakeBlend",
            display_name="Bake Blend",
            description="Keeps a preference as one ordinary LoRA file in the loras folder: the adapters' weights summed, as the method soup, or a LoRA fitted to the blend, or one more LoRA for each pair, so that every preference takes one model call. Load it with Load LoRA, at the cost of one model call, in ComfyUI, A1111 or diffusers.",
            search_aliases=[
                "diffusion blend",
                "merge lora",
                "save lora",
                "extract lora",
                "combine loras",
                "lora merge",
            ],
            inputs=[
                model_input(),
                reward_loras_input(),
                preference_input(),
                io.String.Input(
                    "filename",
                    default="my_blend",
                    tooltip="Name of the new file in the loras folder, without an ending. A name that is taken gets a number; no file is overwritten.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="0 keeps the sum exact: the ranks of the LoRAs add up. A smaller rank makes a smaller file, and the error left is said.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="float32",
                    tooltip="Of the numbers in the file. float16 halves its size and rounds them.",
                ),
                *_distil_inputs(),
            ],
            outputs=[
                RewardLoRAsType.Output(
                    display_name="reward_loras",
                    tooltip="The new LoRA alone, as from Load Reward LoRAs; with cross the LoRAs and their cross adapters.",
                ),
                io.String.Output(
                    display_name="lora_name",
                    tooltip="The new file's name in the loras folder; with cross a line for each.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What is in the file, and the error left for each layer."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward_loras: RewardLoRAs,
        preference: AnyPreference | None = None,
        *,
        filename: str,
        rank: int,
        precision: str,
        method: str = "merge",
        positive: Any = None,
        negative: Any = None,
        latent_image: dict[str, Any] | None = None,
        seed: int = 0,
        steps: int = STEPS,
        cfg: float = CFG,
        trajectories: int = TRAJECTORIES,
        iterations: int = ITERATIONS,
        learning_rate: float = LEARNING_RATE,
    ) -> io.NodeOutput:
        place(filename)  # a wrong name is refused before the work
        settings = None
        if method != "merge":
            runs = {"seed": seed, "steps": steps, "cfg": cfg, "trajectories": trajectories}
            fitted = {"iterations": iterations, "learning_rate": learning_rate}
            settings = distil_settings(method, positive, negative, latent_image, **runs, **fitted)
        if settings is not None and method == "cross":
            return bake_crosses(model, reward_loras, filename, rank, PRECISIONS[precision], settings)
        preference = or_equal(preference)
        wanted = reward_loras.arrange(preference)
        if not isinstance(wanted, Preference):
            raise ValueError(
                "A preference that moves over the run or differs by region cannot be one LoRA: connect a plain Preference Weights."
            )
        coefficients: list[float] = [float(c) for c in coefficients_of(preference, reward_loras)]  # pyright: ignore[reportGeneralTypeIssues]
        baked = sum_updates(model, *with_crosses(reward_loras, coefficients), rank, _progress())
        metadata = baked_metadata(reward_loras, wanted.weights, wanted.kl_scale, coefficients, rank)
        fit_text = ""
        if settings is not None:
            soup, found = distil(model, reward_loras, coefficients, baked, settings, _progress())
            metadata, fit_text = distilled_metadata(metadata, settings, soup, found), fit_report(soup, found)
        finish(baked, PRECISIONS[precision])
        file = write_new(place(filename), save(baked.tensors, metadata))
        name = file.relative_to(loras_folder()).as_posix()
        text = report(baked, name, fit_text)
        notify(text.split("\n", 1)[0])
        adapter = RewardLoRA(metadata["modelspec.title"], file.name, baked.tensors, None, 1.0, metadata)
        return io.NodeOutput(RewardLoRAs((adapter,)), name, text)


def bake_crosses(
    model: Any, loras: RewardLoRAs, filename: str, rank: int, dtype: torch.dtype, settings: DistilSettings
) -> io.NodeOutput:
    """Write a cross adapter for each pair: ``NAME.cross.safetensors``, or ``NAME-1-2.cross.safetensors`` and so on.

    Args:
        model: the host's ModelPatcher.
        loras: at least two adapters.
        filename: checked.
        rank: of every layer; 0 is the larger rank of the two adapters on it.
        dtype: of the files' numbers.
        settings: of the fits.
    """
    fits = fit_crosses(model, loras, rank, settings, _progress())
    path = place(filename)
    stem = path.name.removesuffix(".safetensors").removesuffix(".cross")
    crosses, names, texts = [], [], []
    for one in fits:
        finish(one.baked, dtype)
        numbers = "".join(f"-{place_of + 1}" for place_of in one.pair) if len(fits) > 1 else ""
        content = save(one.baked.tensors, one.metadata)
        file = write_new(path.with_name(f"{stem}{numbers}{CROSS_END}"), content, CROSS_END)
        crosses.append(
            RewardLoRA(one.metadata["modelspec.title"], file.name, one.baked.tensors, None, 1.0, one.metadata)
        )
        names.append(file.relative_to(loras_folder()).as_posix())
        texts.append(report(one.baked, file.name, cross_report(loras.names, one)))
    notify(texts[0] if len(texts) == 1 else f"{len(texts)} cross adapters are written. {texts[0]}")
    together = RewardLoRAs(loras.adapters, slots=loras.slots, crosses=tuple(crosses))
    return io.NodeOutput(together, "\n".join(names), "\n".join(texts))


def _distil_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="merge",
            optional=True,
            tooltip="merge: the adapters' weights summed, as soup; takes seconds. distil: starts as that sum and is fitted to the blend's own predictions; takes many model calls, and needs positive, negative and latent_image. cross: one more LoRA for each pair, fitted to the blends of all preferences; load them beside the LoRAs and use Blend Model with the method soup.",
        ),
        io.Conditioning.Input(
            "positive", optional=True, tooltip="Only for distil and cross: what the images of the fit show."
        ),
        io.Conditioning.Input("negative", optional=True, tooltip="Only for distil and cross: as for a sampler."),
        io.Latent.Input(
            "latent_image", optional=True, tooltip="Only for distil and cross: an empty latent of the size you use."
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            optional=True,
            control_after_generate=False,
            tooltip="Only for distil and cross: of the noise and of the fit.",
        ),
        io.Int.Input(
            "steps",
            default=STEPS,
            min=1,
            max=1000,
            optional=True,
            tooltip="Only for distil and cross: denoising steps of a run.",
        ),
        io.Float.Input(
            "cfg",
            default=CFG,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            optional=True,
            tooltip="Only for distil and cross: guidance of the runs; 1 for models without guidance.",
        ),
        io.Int.Input(
            "trajectories",
            default=TRAJECTORIES,
            min=1,
            max=1000,
            optional=True,
            tooltip="Only for distil and cross: runs of the blend that are recorded. A quarter as many more measure the error.",
        ),
        io.Int.Input(
            "iterations",
            default=ITERATIONS,
            min=1,
            max=100_000,
            optional=True,
            tooltip="Only for distil and cross: steps of the fit, of four model calls with gradient each.",
        ),
        io.Float.Input(
            "learning_rate",
            default=LEARNING_RATE,
            min=1e-6,
            max=1.0,
            step=1e-6,
            optional=True,
            tooltip="Only for distil and cross: lower it where the fit does not get better than the soup.",
        ),
    ]


def distil_settings(
    method: str, positive: Any, negative: Any, latent_image: dict[str, Any] | None, **numbers: Any
) -> DistilSettings:
    """Check what distil and cross need.

    Raises:
        ValueError: the method is unknown, an input is not connected, or a number is not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(METHODS)}.")
    given = {"positive": positive, "negative": negative, "latent_image": latent_image}
    missing = [name for name, value in given.items() if value is None]
    if missing or latent_image is None:
        raise ValueError(f"The method {method} runs the blend, so connect {', '.join(missing)}, or choose merge.")
    check_finite(cfg=numbers["cfg"], learning_rate=numbers["learning_rate"])
    return DistilSettings(positive, negative, latent_image, **numbers)


def _progress() -> Any:
    bars: list[Any] = []

    def advance(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return advance


def report(baked: Baked, name: str, fit_text: str = "") -> str:
    """What a baked file holds: one sentence or more on the first line, then a line for each layer with an error.

    Args:
        baked: finished.
        name: of the file.
        fit_text: of `fit_report`, where the file was fitted to the blend. The layers' errors are then not the file's.
    """
    layers = len(
        {key.rsplit(".lora_", 1)[0].rsplit(".diff", 1)[0] for key in baked.tensors if not key.endswith(".alpha")}
    )
    size = sum(tensor.numel() * tensor.element_size() for tensor in baked.tensors.values()) / 2**20
    text = f"{name}: {layers} layers, {size:.1f} MiB. "
    if fit_text:
        text += fit_text
    elif baked.errors:
        text += f"The reduced rank leaves an error of {baked.error:.2%} of the update."
    else:
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in baked.tensors.values()} - {"float32"}
        text += f"The sum is exact, but for the rounding to {kinds.pop()}." if kinds else "The sum is exact."
    if baked.dense:
        text += f" {len(baked.dense)} layers are no low-rank products and are stored whole: choose a rank to make them smaller."
    if baked.left_out:
        parts = ", ".join(f"{count} in {file}" for file, count in baked.left_out.items())
        text += f" Text-encoder tensors that are not plain LoRA were left out: {parts}."
    rows = [] if fit_text else sorted(baked.errors.items(), key=lambda entry: -entry[1])
    return text + "".join(f"\n{error:.2%}  {key}" for key, error in rows)
