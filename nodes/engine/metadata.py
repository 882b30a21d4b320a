"""Records of blends in the metadata of saved images.

The host writes each entry of a prompt's ``extra_pnginfo`` into the files that the prompt saves. Its own Save Image makes a
text chunk of the PNG. A node can add an entry while it runs. But a node whose result is cached does not run again, and an
image that is saved from the cached latent would carry no entry. So each node's entry is a list that is put into the prompt
before the prompt runs. Prompts share the list of a node if the node and everything before it are the same, which is the
condition under which the host uses the cached result.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ...blending.preference import AnyPreference, Preference
from ..adapters.files import RewardLoRAs
from .server import on_prompt

KEY = "diffusion_blend"
"""The name of the entry, which is the keyword of the text chunk in a PNG."""

RECORDED = (io.Hidden.extra_pnginfo,)
"""Hidden inputs of a node that records its blend."""

# Ids of the nodes that record.
RECORDING = frozenset(
    {
        "BlendModel",
        "BlendedKSampler",
        "KLScaleSampler",
        "StochasticAdapterSampler",
        "MSDDASampler",
        "CorrectedBlendSampler",
        "BlendProbe",
    }
)

# Far more than the number of cached results of a session.
MOST_RECORDS = 4096


def record_of(method: str, preference: AnyPreference, loras: RewardLoRAs, **details: Any) -> dict[str, Any]:
    """Describe a blend as plain data.

    Args:
        method: the method's name.
        preference: the requested preference.
        loras: the adapters.
        details: further settings of the method.

    Returns:
        ``{"method": ..., "adapters": [{"name": ..., "file": ..., "strength": ..., "weight": ...}], "kl_scale": ...}``. An
        adapter has "scale", too, where a factor of its training is applied. A preference over time or space is under
        "preference" instead of "weight" and "kl_scale".
    """
    adapters: list[dict[str, Any]] = [
        adapter.record | ({} if adapter.scales[0] is None else {"scale": adapter.scales[0]}) for adapter in loras
    ]
    record: dict[str, Any] = {"method": method, "adapters": adapters}
    arranged = loras.arrange(preference)
    wanted = arranged.described(loras.names)
    if isinstance(arranged, Preference):
        for adapter, weight in zip(adapters, wanted["weights"], strict=True):
            adapter["weight"] = weight
        record["kl_scale"] = wanted["kl_scale"]
    else:
        record["preference"] = wanted
    return record | details


def record_blend(
    node: type[io.ComfyNode], method: str, preference: AnyPreference, loras: RewardLoRAs, **details: Any
) -> None:
    """Record a node's blend in the running prompt. Outside a prompt this does nothing.

    Args:
        node: the running node's class, with its hidden inputs.
        method: see `record_of`, also for the other arguments.
    """
    context = get_executing_context()
    extra = None if node.hidden is None else node.hidden.extra_pnginfo
    if context is None or extra is None:
        return
    records = extra.setdefault(KEY, {}).setdefault(context.node_id, [])
    if not context.list_index:  # a run replaces the records of an earlier run; in a list the first item does so
        records.clear()
    records.append(record_of(method, preference, loras, **details))


class BlendRecords:
    """The server's prompt handler, which gives every blend node of a prompt the list for its records."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Add the lists to a request, before the server checks and queues it.

        Args:
            request: the body of the request, ``{"prompt": {id: {"class_type": ..., "inputs": {...}}}, "extra_data": ...}``.
        """
        prompt = request.get("prompt")
        if not isinstance(prompt, dict):
            return request  # the server reports the error
        found = {node_id: node for node_id, node in prompt.items() if _class_of(node) in RECORDING}
        if found:
            digests: dict[str, str] = {}
            extra_data = request["extra_data"] = request.get("extra_data") or {}
            extra = extra_data["extra_pnginfo"] = extra_data.get("extra_pnginfo") or {}
            extra[KEY] = {node_id: self._list_of(_digest(prompt, node_id, digests)) for node_id in found}
        return request

    def _list_of(self, digest: str) -> list[dict[str, Any]]:
        records = self._records.setdefault(digest, [])
        self._records.move_to_end(digest)
        while len(self._records) > MOST_RECORDS:
            self._records.popitem(last=False)
        return records


def install() -> None:
    """Register the prompt handler with the running server, if there is one."""
    on_prompt(BlendRecords())


def _class_of(node: Any) -> Any:
    return node.get("class_type") if isinstance(node, dict) else None


def _digest(prompt: Mapping[str, Any], node_id: str, digests: dict[str, str]) -> str:
    """A digest of a node and everything before it, without their ids. Nodes of equal digest may share a cached result."""
    if node_id not in digests:
        digests[node_id] = ""  # ends the recursion in a cycle, which the server refuses
        node = prompt.get(node_id)
        inputs = node.get("inputs") if isinstance(node, dict) else None
        inputs = inputs if isinstance(inputs, dict) else {}
        followed = {
            name: [_digest(prompt, value[0], digests), value[1]] if _is_link(value, prompt) else value
            for name, value in inputs.items()
        }
        text = json.dumps([_class_of(node), followed], sort_keys=True, default=str)
        digests[node_id] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return digests[node_id]


def _is_link(value: Any, prompt: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt
