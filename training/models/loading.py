"""Reads a diffusers pipeline from the hub, a folder or a single checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import fetch_diffusers_config, infer_diffusers_model_type
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from ..config import BaseConfig
from .family import FAMILIES, check_frames, family_of, supported
from .quantised import quantisation_config


def read_pipeline(config: BaseConfig, dtype: torch.dtype, *, allow_download: bool) -> Any:
    """Read the pipeline that a configuration names.

    Args:
        config: the path, and the configuration folder of a single checkpoint.
        dtype: of the weights.
        allow_download: permit fetching what is not on this machine.

    Raises:
        ValueError: it cannot be found or read, or this trainer does not support its kind.
    """
    if config.path.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise ValueError(f"base {config.path}: pickled checkpoints can run code and are not read; use .safetensors")
    read = _from_file if config.path.endswith(".safetensors") else _from_folder_or_hub
    return read(config, dtype, allow_download=allow_download)


def _from_folder_or_hub(config: BaseConfig, dtype: torch.dtype, *, allow_download: bool) -> Any:
    folder = Path(config.path)
    if folder.is_dir():
        check_frames(family_of(_pipeline_class(folder), config.path), config.frames, config.path)
    elif folder.is_absolute() or config.path.startswith(".") or config.path.count("/") != 1:
        raise ValueError(f"base {config.path!r}: no such folder or file, and not a hub id (owner/name)")
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(  # the class named in model_index.json
            config.path,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=not allow_download,
            **(_left_out(folder) if folder.is_dir() else {}),
            **(
                {}
                if config.quantise == "none"
                else {"quantization_config": quantisation_config(config.quantise, dtype)}
            ),
        )
    except (OSError, ValueError, SafetensorError) as error:
        advice = (
            "is the folder complete and does it hold .safetensors weights?"
            if folder.is_dir()
            else "it is not on this machine: give a local folder, or --allow_download true to fetch it from "
            f"https://huggingface.co/{config.path} (several GB, under the licence stated there)"
        )
        raise ValueError(f"cannot read base {config.path!r}: {advice} ({error})") from error
    family_of(type(pipeline).__name__, config.path)
    return pipeline


def _left_out(folder: Path) -> dict[str, None]:
    """The parts that a folder lists without a class, such as SD3's T5, which diffusers takes as arguments; and the checker."""
    index = _index(folder)
    empty = [name for name, entry in index.items() if isinstance(entry, list) and entry[:1] == [None]]
    return dict.fromkeys([*empty, *(name for name in index if name == "safety_checker")])


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def _pipeline_class(folder: Path) -> str:
    try:
        return str(_index(folder)["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"base {folder}: no readable model_index.json, so not a diffusers folder") from error


def _from_file(config: BaseConfig, dtype: torch.dtype, *, allow_download: bool) -> Any:
    path = Path(config.path)
    if not path.is_file():
        raise ValueError(f"base {config.path!r}: no such file")
    shapes = _shapes(path)
    pipeline = _checkpoint_class(infer_diffusers_model_type(shapes), path)
    name = config.config or str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])
    try:
        if not allow_download and not Path(name).is_dir():
            # from_single_file asks the hub for a configuration that is not cached even with local_files_only=True
            # (diffusers 0.42.1, loaders/single_file.py), so it only ever gets a folder.
            name = snapshot_download(name, local_files_only=True)
        return pipeline.from_single_file(str(path), torch_dtype=dtype, local_files_only=not allow_download, config=name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"cannot build a pipeline from {path} ({error}): give its configuration and tokenizers with --base.config "
            "(a diffusers folder of the same kind), or --allow_download true to fetch them (a few MB)"
        ) from error


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """Tensors without memory, of the checkpoint's names and shapes."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read base {path}: not a whole .safetensors file ({error})") from error


def _checkpoint_class(kind: str, path: Path) -> Any:
    """diffusers' pipeline class for a kind of single checkpoint."""
    for name, family in FAMILIES.items():
        if kind in family.checkpoint_kinds:
            return getattr(diffusers, name)
    raise ValueError(f"base {path} looks like {kind!r}, which this trainer does not support yet; {supported()}")
