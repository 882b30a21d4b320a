"""The prompt of a request while the server checks it, which a node's own check may look at.

The host gives a node's ``validate_inputs`` the node's own values only. Which adapters a weight belongs to stands in other nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

from ...blending.preference import Preference
from ...blending.slots import Slots
from .server import on_prompt

LOADER, WEIGHTS = "LoadRewardLoRAs", "PreferenceWeights"
PASSING = frozenset({"PreferenceSchedule", "RegionalPreference"})
"""Nodes whose output goes to the same adapters as their preferences do."""

Prompt = Mapping[str, Any]
_wanted: ContextVar[Prompt | None] = ContextVar(
    "wanted_prompt", default=None
)  # each request runs in a context of its own


def remember(request: dict[str, Any]) -> dict[str, Any]:
    """The server's prompt handler: keep the request's prompt for the checks that follow."""
    prompt = request.get("prompt")
    _wanted.set(prompt if isinstance(prompt, dict) else None)
    return request


def install() -> None:
    """Register the prompt handler with the running server, if there is one."""
    on_prompt(remember)


def problem_of_weights(node_id: str | None) -> str:
    """Find why the weights of a Preference Weights cannot go with the adapters that they are for.

    Only a part of the prompt whose values are all written down is judged. The run judges the rest.

    Args:
        node_id: the node, in the prompt that is being checked.

    Returns:
        What is wrong, or an empty string.
    """
    prompt = _wanted.get()
    if prompt is None or node_id is None or _class_of(prompt.get(node_id)) != WEIGHTS:
        return ""
    preference = _preference(prompt, node_id)
    if preference is None:
        return ""
    for link in _adapters_of(prompt, node_id):
        loaders = _loaders(prompt, link)
        names = [name for loader in loaders or () for name in loader if name]
        if not loaders or not names:
            continue  # not known before the run, or refused by the loader
        slots: Slots = [[bool(name) for name in loader] for loader in loaders]
        try:
            preference.arranged(slots, names).normalised(names)
        except ValueError as error:
            return str(error)
    return ""


def _adapters_of(prompt: Prompt, node_id: str) -> list[Any]:
    """The links to the adapters that a preference is for, at the nodes that use both."""
    found, seen, waiting = [], set(), [node_id]
    own = prompt[node_id]["inputs"].get("reward_loras")
    followed = [item for item in prompt.values() if _is_link_to(_inputs(item).get("preference"), node_id)]
    if own is not None and not any(_class_of(item) == WEIGHTS for item in followed):
        found.append(own)
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        for user, item in prompt.items():
            inputs = _inputs(item)
            if not any(_is_link_to(value, source) for value in inputs.values()):
                continue
            if _class_of(item) in PASSING:
                waiting.append(user)
            elif _class_of(item) != WEIGHTS and "reward_loras" in inputs:
                found.append(inputs["reward_loras"])
    return found


def _preference(prompt: Prompt, node_id: str, depth: int = 0) -> Preference | None:
    """The preference of a chain of weights; None if only the run knows it, or refuses it."""
    inputs = _inputs(prompt.get(node_id))
    if _class_of(prompt.get(node_id)) != WEIGHTS or depth > len(prompt):
        return None
    weights = [inputs.get(f"weight_{number}", 0.0) for number in range(1, 9)]
    if not all(isinstance(value, (int, float)) and value >= 0 for value in weights):
        return None
    linked = _loaders(prompt, inputs["reward_loras"]) if _is_link(inputs.get("reward_loras")) else None
    own = Preference(tuple(weights), nodes=(len(weights),), links=(linked,) if linked else ())
    before = inputs.get("preference")
    if before is None:
        return own
    first = _preference(prompt, before[0], depth + 1) if _is_link(before) else None
    return None if first is None else first.followed_by(own)


def _loaders(prompt: Prompt, link: Any, depth: int = 0) -> list[list[str]] | None:
    """For every loader of a chain, the name in each slot, empty where none takes part; None if only the run knows them."""
    item = prompt.get(link[0]) if _is_link(link) else None
    if _class_of(item) != LOADER or depth > len(prompt):
        return None
    inputs = _inputs(item)
    slots = [(inputs.get(f"lora_{number}", "None"), inputs.get(f"on_{number}", True)) for number in range(1, 9)]
    if not all(isinstance(file, str) and isinstance(on, bool) for file, on in slots):
        return None
    last = max((number for number, (file, _) in enumerate(slots, 1) if file != "None"), default=0)
    own = [[PurePath(file).stem if on and file != "None" else "" for file, on in slots[:last]]]
    if inputs.get("reward_loras") is None:
        return own
    before = _loaders(prompt, inputs["reward_loras"], depth + 1)
    return None if before is None else before + own


def _class_of(item: Any) -> Any:
    return item.get("class_type") if isinstance(item, dict) else None


def _inputs(item: Any) -> dict[str, Any]:
    inputs = item.get("inputs") if isinstance(item, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _is_link_to(value: Any, node_id: str) -> bool:
    return _is_link(value) and value[0] == node_id
