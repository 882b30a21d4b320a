"""Fitting of adapter files to a model: ComfyUI's reader, then exact updates per layer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import comfy.lora
import comfy.model_patcher
import torch
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.kinds import OtherShape
from ...blending.updates import LowRank, Update
from ..engine.notices import notify
from ..host import Network, Patcher
from .base_weights import BaseWeights, Unreadable
from .conversion import Updates, bytes_of, convert, convert_chain
from .files import RewardLoRA, RewardLoRAs
from .reader import read_content
from .report import Report
from .targets import Absent, locate, parameter_of

logger = logging.getLogger("diffusion_blend")


def bank_patcher(loras: RewardLoRAs, model: Patcher) -> Any:
    """Build the adapters' tensors for a model, in a patcher of their own that the host loads and counts.

    What a file holds that does not fit the model is skipped, as the host skips it, and said once.

    Args:
        loras: the adapters.
        model: the host's ModelPatcher of the diffusion model. It is not changed.

    Returns:
        A ModelPatcher of an `AdapterBank` whose layer names are relative to ``model.model``. Calls with the same model return
        the same patcher; for adapters that multiply the base's weights, as long as the model's own patches stay the same.

    Raises:
        ValueError: an adapter does not fit this model, or its file is damaged in a part that is used.
    """
    network = model.model
    made = loras.banks.setdefault(network, {})
    for patches in (None, model.patches_uuid):
        if patches in made:
            return made[patches]
    weights = BaseWeights(model)
    hosts = comfy.lora.model_lora_keys_unet(network, {})
    updates: list[dict[str, list[Update]]] = []
    for adapter in (*loras.adapters, *loras.crosses):
        fitted, report = fit_adapter(adapter, network, hosts, weights)
        updates.append(fitted)
        if report.text():
            notify(report.text())
    bank = AdapterBank(updates, compute_dtype(network), len(loras.adapters))
    patcher = patcher_of(bank, model.load_device, model.offload_device)
    made[model.patches_uuid if weights.used else None] = patcher
    return patcher


def patcher_of(bank: AdapterBank, load_device: torch.device, offload_device: torch.device) -> Any:
    """Return a patcher of the host's own kind, so that its memory management treats the bank as it treats its models.

    The host makes a copy for each further GPU by ``cached_patcher_init``.
    """
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = kind(bank, load_device, offload_device)
    patcher.cached_patcher_init = (_copied, (bank, load_device, offload_device))
    return patcher


def _copied(bank: AdapterBank, load_device: torch.device, offload_device: torch.device) -> Any:
    return patcher_of(copy.deepcopy(bank), load_device, offload_device)


def compute_dtype(network: Network) -> torch.dtype:
    """Return the network's compute dtype, in which the factors are stored."""
    dtype = network.manual_cast_dtype or network.get_dtype()
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float32


def fit_adapter(
    adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any], weights: BaseWeights
) -> tuple[dict[str, list[Update]], Report]:
    """Convert one adapter file to exact updates of a model's layers.

    Args:
        adapter: the file's content.
        network: the host's BaseModel.
        hosts: ``comfy.lora.model_lora_keys_unet`` of the network.
        weights: the model's own weights, read only for the kinds that multiply them.

    Returns:
        Name of a layer (or of a parameter outside of the layers) -> its updates, and what was skipped.

    Raises:
        ValueError: as `bank_patcher`.
    """
    report = Report(adapter, type(network.model_config).__name__)
    updates: dict[str, list[Update]] = {}
    itemsize = compute_dtype(network).itemsize
    for target, kind, make in _conversions(adapter, network, hosts, weights, report):
        try:
            found = _finite(make())
        except Absent:
            report.absent.append(parameter_of(target))
        except OtherShape as error:
            report.misshapen.append((parameter_of(target), str(error)))
        except Unreadable as error:
            report.unreadable.append((parameter_of(target), str(error)))
        except ValueError as error:
            raise ValueError(
                f"{adapter.file}: {parameter_of(target)}: {error} The file is damaged, or made for another architecture."
            ) from error
        else:
            report.kinds[kind] += 1
            report.bytes_said += _bytes_to_say(kind, found, itemsize)
            for name, update in found:
                updates.setdefault(name, []).append(update)
    report.check()
    return updates, report


def _finite(updates: Updates) -> Updates:
    """Return the updates of any kind, if all their numbers are finite.

    Raises:
        ValueError: one is NaN or infinite.
    """
    if not all(bool(torch.isfinite(tensor).all()) for _, update in updates for tensor in update.tensors()):
        raise ValueError("it makes NaN or infinite numbers.")
    return updates


Conversion = tuple[Any, str, Callable[[], Updates]]
"""A target of the host, the kind of its update, and the function that converts it."""


def _conversions(
    adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any], weights: BaseWeights, report: Report
) -> Iterator[Conversion]:
    """The conversions of an adapter's parts, one for each parameter that it changes."""
    if adapter.patches is not None:
        for key, entries in adapter.patches.items():
            yield key, "chain", partial(convert_chain, entries, key, network, weights)
        return
    content = read_content(adapter, network, hosts)
    report.count_unused(content.unused)
    report.without_effect += content.without_effect
    for target, patch in content.patches.items():
        magnitude = content.magnitudes.get(target)
        yield (
            target,
            _kind(patch),
            partial(_convert, patch, network, target, adapter.network_strength, weights, magnitude),
        )


def _convert(
    patch: Any, network: Any, target: Any, strength: float, weights: BaseWeights, magnitude: Tensor | None
) -> Updates:
    return convert(patch, locate(network, target), strength, weights, magnitude)


def _kind(patch: Any) -> str:
    return patch[0] if isinstance(patch, tuple) and len(patch) > 1 else getattr(patch, "name", "diff")


def _bytes_to_say(kind: str, updates: Updates, itemsize: int) -> int:
    """Memory of the updates that may take more than the file: all but plain low-rank pairs."""
    return sum(bytes_of(update, itemsize) for _, update in updates if kind != "lora" or not isinstance(update, LowRank))
