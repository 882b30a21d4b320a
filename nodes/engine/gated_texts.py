"""Conditionings that the network's own layers prepare: each row of gates is evaluated with its own.

Some networks run layers of theirs on the text once per run, before the first step (LTX-AV, Anima, MiniMax H3). Adapters on such
layers change the conditioning itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import comfy.samplers
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from ...blending.plans import Gates

Prepare = Callable[[str, Any], Mapping[str, Any]]
"""Makes the host's ``model_conds`` of a conditioning, of its kind and its entries."""


AREA = (
    "An adapter changes how this network prepares the text, and that cannot be combined with a conditioning that has an area. "
    "Use Conditioning (Set Mask) instead of an area."
)


class GatedTexts:
    """The conditionings of one run, for each row of gates. They are prepared at the first call that needs them.

    Args:
        every: the conditionings, with their kinds.
        prepare: makes ``model_conds`` with the network's layers.
        gated: selects gates for the network's layers.
        count: of the adapters.
    """

    def __init__(
        self,
        every: Iterable[tuple[str, Any]],
        prepare: Prepare,
        gated: Callable[[tuple[Gates, ...]], AbstractContextManager[None]],
        count: int,
    ) -> None:
        self._every: dict[Any, tuple[str, Any]] = {}
        for kind, cond in every:
            if cond["uuid"] in self._every:  # the host copies a conditioning of the other branch for its area
                raise ValueError(AREA)
            self._every[cond["uuid"]] = kind, cond
        self._prepare, self._gated = prepare, gated
        self._made: dict[tuple[Any, Gates], Mapping[str, Any]] = {}
        full = (1.0,) * count
        self._names = {
            name
            for conditioning, (_, cond) in self._every.items()
            for name, value in self._conds(conditioning, full).items()
            if _differs(value, cond["model_conds"].get(name))
        }

    def inputs(self, ids: Sequence[Any], gates: Gates, images: int, names: Sequence[str]) -> dict[str, Any]:
        """Return the inputs of a call that depend on the gates; as `RunTexts.inputs`."""
        made = []
        for conditioning in ids:
            conds = self._conds(conditioning, gates)
            used = [name for name in names if name in self._names and name in conds]
            made.append({name: conds[name].process_cond(batch_size=images, area=None) for name in used})
        return comfy.samplers.cond_cat(made)

    def control(self, _ids: Sequence[Any], _gates: Gates, /) -> Any:
        """No ControlNet reads a text that the network itself prepares."""
        return None

    def _conds(self, conditioning: Any, gates: Gates) -> Mapping[str, Any]:
        kind, cond = self._every[conditioning]
        if not any(gates):
            return cond["model_conds"]
        if (conditioning, gates) not in self._made:
            with self._gated((gates,)):
                self._made[conditioning, gates] = self._prepare(kind, cond)
        return self._made[conditioning, gates]


def _differs(value: Any, other: Any) -> bool:
    own, others = getattr(value, "cond", None), getattr(other, "cond", None)
    if not isinstance(own, Tensor) or not isinstance(others, Tensor):
        return False
    return own.shape != others.shape or not bool((own == others).all())


@contextmanager
def layers_that_run(ids: Mapping[int, str]) -> Iterator[set[str]]:
    """Collect the names of the layers that are called inside the block.

    Args:
        ids: the layers' names by their modules' ids.
    """
    called: set[str] = set()

    def note(module: Any, _: Any) -> None:
        name = ids.get(id(module))
        if name is not None:
            called.add(name)

    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()
