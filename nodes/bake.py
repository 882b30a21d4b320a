"""The node Bake Blend: the adapters of a preference as one LoRA file, for any program that loads LoRAs."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import save

from ..blending.preference import AnyPreference, Preference
from .adapters.baking import Baked, bake_merge, baked_metadata
from .adapters.files import RewardLoRA, RewardLoRAs
from .engine.notices import notify
from .samplers import coefficients_of, or_equal
from .schema import RewardLoRAsType, make_schema, model_input, preference_input, reward_loras_input

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MOST_COPIES = 10_000
"""The largest number at the end of a file's name."""
LONGEST_NAME = 200
"""Bytes of a file's name without number and ending. File systems take 255."""


class BakeBlend(io.ComfyNode):
    """The soup of a preference as one LoRA file in the loras folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="BakeBlend",
            display_name="Bake Blend",
            description="Keeps a preference as one ordinary LoRA file in the loras folder: the adapters' weights summed, as the method soup. Load it with Load LoRA, at the cost of one model call, in ComfyUI, A1111 or diffusers.",
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
            ],
            outputs=[
                RewardLoRAsType.Output(
                    display_name="reward_loras", tooltip="The new LoRA alone, as from Load Reward LoRAs."
                ),
                io.String.Output(display_name="lora_name", tooltip="The new file's name in the loras folder."),
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
    ) -> io.NodeOutput:
        place(filename)  # a wrong name is refused before the work
        preference = or_equal(preference)
        wanted = reward_loras.arrange(preference)
        if not isinstance(wanted, Preference):
            raise ValueError(
                "A preference that moves over the run or differs by region cannot be one LoRA: connect a plain Preference Weights."
            )
        coefficients: list[float] = [float(c) for c in coefficients_of(preference, reward_loras)]  # pyright: ignore[reportGeneralTypeIssues]
        baked = bake_merge(model, reward_loras, coefficients, rank, PRECISIONS[precision], _progress())
        metadata = baked_metadata(reward_loras, wanted.weights, wanted.kl_scale, coefficients, rank)
        file = write_new(place(filename), save(baked.tensors, metadata))
        text = report(baked, file.name)
        notify(text.split("\n", 1)[0])
        adapter = RewardLoRA(metadata["modelspec.title"], file.name, baked.tensors, None, 1.0, metadata)
        name = file.relative_to(_folder()).as_posix()
        return io.NodeOutput(RewardLoRAs((adapter,)), name, text)


def _progress() -> Any:
    bars: list[Any] = []

    def advance(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return advance


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def _can_be_a_name(part: str) -> bool:
    """Whether a file may have this name on every system, with a number and an ending behind it."""
    return (
        re.fullmatch(r"[^<>:\"|?*\\/]+", part) is not None
        and part.strip(". ") == part
        and not any(unicodedata.category(letter).startswith("C") for letter in part)
        and len(part.encode()) <= LONGEST_NAME
        and re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part, re.IGNORECASE) is None
    )


def place(filename: str) -> Path:
    """Return the file that a name stands for, inside the first loras folder.

    Raises:
        ValueError: the name is empty or too long, is not a name inside the folder, or has characters that cannot be seen.
    """
    parts = filename.strip().removesuffix(".safetensors").split("/")
    if not all(_can_be_a_name(part) for part in parts):
        raise ValueError(
            f"filename is {filename!r}: give a name without an ending, such as my_blend or folder/my_blend, inside the loras "
            f"folder, of visible characters and at most {LONGEST_NAME} bytes."
        )
    path = _folder().joinpath(*parts).with_name(f"{parts[-1]}.safetensors")
    if not path.resolve().is_relative_to(_folder()):  # a link inside the folder may lead out of it
        raise ValueError(f"filename is {filename!r}, which leads out of the loras folder: choose another name.")
    return path


def write_new(path: Path, content: bytes) -> Path:
    """Write a file that is not there yet; where the name is taken, with a number at its end.

    Returns:
        The file.

    Raises:
        ValueError: the folder cannot be written, or too many names are taken.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, MOST_COPIES):
            file = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
            try:
                file.open("xb").close()  # takes the name, also where another process wants it
            except FileExistsError:
                continue
            _fill(file, content)
            return file
    except OSError as error:
        raise ValueError(f"{path.name} cannot be written into the loras folder ({error.strerror}).") from error
    raise ValueError(f"{path.stem} and {MOST_COPIES} numbered names are taken: choose another name.")


def _fill(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise


def report(baked: Baked, name: str) -> str:
    """What a baked file holds: one sentence or more on the first line, then a line for each layer with an error."""
    layers = len(
        {key.rsplit(".lora_", 1)[0].rsplit(".diff", 1)[0] for key in baked.tensors if not key.endswith(".alpha")}
    )
    size = sum(tensor.numel() * tensor.element_size() for tensor in baked.tensors.values()) / 2**20
    text = f"{name}: {layers} layers, {size:.1f} MiB. "
    text += (
        f"The reduced rank leaves an error of {baked.error:.2%} of the update." if baked.errors else "The sum is exact."
    )
    if baked.dense:
        text += f" {len(baked.dense)} layers are no low-rank products and are stored whole: choose a rank to make them smaller."
    if baked.left_out:
        parts = ", ".join(f"{count} in {file}" for file, count in baked.left_out.items())
        text += f" Text-encoder tensors that are not plain LoRA were left out: {parts}."
    rows = sorted(baked.errors.items(), key=lambda entry: -entry[1])
    return text + "".join(f"\n{error:.2%}  {key}" for key, error in rows)
