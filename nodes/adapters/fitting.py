"""Fitting of adapter files to a model: ComfyUI's reader, then exact updates per layer."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.lora
import comfy.model_patcher
import torch
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.kinds import OtherShape
from ...blending.updates import LowRank, Update
from ..engine.module_tree import ModuleTree
from ..engine.notices import notify
from ..host import Network, Patcher
from .base_weights import BaseWeights, Unreadable, patches_of
from .conversion import convert, convert_chain
from .differences import Updates
from .files import RewardLoRA, RewardLoRAs
from .overlaps import overlapping
from .own_modules import own_modules
from .patches import adds, has_flat_scale, has_other_axes, kind_of
from .reader import read_content
from .report import Report
from .targets import Absent, function_of, locate, offset_of, parameter_of

logger = logging.getLogger("diffusion_blend")


@dataclass(frozen=True, eq=False)
class Fitted:
    """Adapters fitted to a model.

    Args:
        tree: the network's modules at that time.
        patcher: of the bank.
        said: what of the files is skipped, in words.
    """

    tree: ModuleTree
    patcher: Any
    said: str


def bank_patcher(loras: RewardLoRAs, model: Patcher) -> Any:
    """Build the adapters' tensors for a model, in a patcher of their own that the host loads and counts.

    What a file holds that does not fit the model is skipped, as the host skips it. A message says so at each call.

    Args:
        loras: the adapters.
        model: the host's ModelPatcher of the diffusion model. It is not changed.

    Returns:
        A ModelPatcher of an `AdapterBank` whose layer names are relative to ``model.model``. Calls with the same model return
        the same patcher, as long as its modules stay the same; for adapters that multiply the base's weights, as long as the
        model's own patches do, too.

    Raises:
        ValueError: an adapter does not fit this model, or its file is damaged in a part that is used.
    """
    made = loras.banks.setdefault(model.model, {})
    with own_modules(model):
        known = (made.get(patches) for patches in (None, patches_of(model)))
        fitted = next((one for one in known if one is not None and one.tree.is_current()), None)
        if fitted is None:
            weights = BaseWeights(model)
            fitted = _fitted(loras, model, weights)
            _remember(made, patches_of(model) if weights.used else None, fitted)
    if fitted.said:
        notify(fitted.said)
    return fitted.patcher


def _remember(made: dict[Any, Fitted], state: Any, fitted: Fitted) -> None:
    """Store a bank for a state of the model's own patches, and forget those of states before the last one."""
    earlier = [known for known in made if known not in (None, state)]
    for known in earlier[:-1]:
        del made[known]
    made[state] = fitted


def _fitted(loras: RewardLoRAs, model: Patcher, weights: BaseWeights) -> Fitted:
    network = model.model
    hosts = comfy.lora.model_lora_keys_unet(network, {})
    every = [fit_adapter(adapter, network, hosts, weights) for adapter in (*loras.adapters, *loras.crosses)]
    bank = AdapterBank([updates for updates, _ in every], compute_dtype(network), len(loras.adapters))
    said = "\n".join(report.text() for _, report in every if report.text())
    return Fitted(ModuleTree(network), patcher_of(bank, model.load_device, model.offload_device), said)


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


@dataclass(frozen=True)
class Part:
    """One patch of an adapter.

    Args:
        target: of the host's key map.
        kind: of the update.
        patch: of the host's reader.
        convert: makes the updates.
        magnitude: key of a DoRA's magnitude in PEFT's spelling, or None.
    """

    target: Any
    kind: str
    patch: Any
    convert: Callable[[], Updates]
    magnitude: str | None = None


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
    for group in _groups(adapter, network, hosts, weights, report):
        for kinds, found in _converted(group, adapter, network, weights, report):
            report.kinds.update(kinds)
            report.bytes_said += _bytes_to_say(kinds, found, itemsize)
            for name, update in found:
                updates.setdefault(name, []).append(update)
    report.check()
    return updates, report


def _groups(
    adapter: RewardLoRA, network: Any, hosts: Mapping[str, Any], weights: BaseWeights, report: Report
) -> Iterator[list[Part]]:
    """The parts of an adapter, those together that change the same numbers."""
    if adapter.patches is not None:
        for key, entries in adapter.patches.items():
            yield [Part(key, "chain", None, partial(convert_chain, entries, key, network, weights))]
        return
    content = read_content(adapter, network, hosts)
    report.count_unused(content.unused)
    report.second += content.second
    report.unread += content.unread
    for targets in overlapping(content.patches):
        group = []
        for target in targets:
            patch = content.patches[target]
            key, magnitude = content.magnitudes.get(target, (None, None))
            make = partial(_convert, patch, network, target, adapter, weights, magnitude)
            group.append(Part(target, kind_of(patch), patch, make, key))
        yield group


def _converted(
    group: list[Part], adapter: RewardLoRA, network: Any, weights: BaseWeights, report: Report
) -> Iterator[tuple[list[str], Updates]]:
    """The updates of parts that change the same numbers.

    Parts that all add to the weight are a sum. Of others the host applies each to the result of those before it, so their change
    is that of all together.

    Returns:
        The kinds of the parts, and their updates.
    """
    outcomes = [(part, tried(part.target, part.convert, adapter, report)) for part in group]
    fitting = [(part, updates) for part, updates in outcomes if updates is not None]
    report.spread += [parameter_of(part.target) for part, _ in fitting if has_flat_scale(part.patch)]
    report.other_axes += [parameter_of(part.target) for part, _ in fitting if has_other_axes(part.patch)]
    if len(fitting) < 2 or all(part.magnitude is None and adds(part.patch) for part, _ in fitting):
        yield from (([part.kind], updates) for part, updates in fitting)
        return
    report.unread += [part.magnitude for part, _ in fitting if part.magnitude is not None]
    key = parameter_of(group[0].target)
    entries = [
        (adapter.network_strength, part.patch, 1.0, offset_of(part.target), function_of(part.target))
        for part, _ in fitting
    ]
    if adapter.is_off:  # weights that replace the model's have no strength
        entries = []
    together = tried(key, partial(convert_chain, entries, key, network, weights), adapter, report)
    if together is not None:
        yield [part.kind for part, _ in fitting], together


def tried(target: Any, make: Callable[[], Updates], adapter: RewardLoRA, report: Report) -> Updates | None:
    """Convert a part of an adapter.

    Args:
        target: of the host's key map.
        make: the conversion.
        adapter: the file.
        report: of the file. Where the part does not fit, it says so.

    Returns:
        The updates, None where the part does not fit.

    Raises:
        ValueError: the file is damaged in this part.
    """
    name = parameter_of(target)
    try:
        return _finite(make())
    except Absent:
        report.absent.append(name)
    except OtherShape as error:
        report.misshapen.append((name, str(error)))
    except Unreadable as error:
        report.unreadable.append((name, str(error)))
    except ValueError as error:
        raise ValueError(
            f"{adapter.file}: {name}: {error} The file is damaged, or made for another architecture."
        ) from error
    return None


def _finite(updates: Updates) -> Updates:
    """Return the updates of any kind, if all their numbers are finite.

    Raises:
        ValueError: one is NaN or infinite.
    """
    if not all(bool(torch.isfinite(tensor).all()) for _, update in updates for tensor in update.tensors()):
        raise ValueError("it makes NaN or infinite numbers.")
    return updates


def _convert(
    patch: Any, network: Any, target: Any, adapter: RewardLoRA, weights: BaseWeights, magnitude: Tensor | None
) -> Updates:
    updates = convert(patch, locate(network, target), adapter.network_strength, weights, magnitude)
    return [] if adapter.is_off and kind_of(patch) == "set" else updates


def _bytes_to_say(kinds: list[str], updates: Updates, itemsize: int) -> int:
    """Memory of the updates that may take more than the file: all but plain low-rank pairs."""
    large = [update for _, update in updates if kinds != ["lora"] or not isinstance(update, LowRank)]
    return sum(math.prod(tensor.shape) for update in large for tensor in update.tensors()) * itemsize
