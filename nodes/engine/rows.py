"""Evaluates the rows of a plan: several in one call where that is proven to be right, else one after the other.

The side path takes the rows of a layer's input for the call's images, in order. Some networks break that without an error: they
swap the halves of the batch, run time-major, concatenate copies or regroup tokens. So the first call with several rows of gates
is compared with a plain call, in which every row of every layer has the same gates. Where the two differ, the run goes on row by
row, and each image with gates of its own is taken from a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import comfy.model_management
import torch
from torch import Tensor

from ...blending.exchange import RowsDoNotFit
from ..host import Network
from .calls import ModelCall
from .gated import GatedNetwork, Row
from .module_tree import ModuleTrees
from .notices import notify
from .row_check import Comparison, agrees, shows_a_difference

# The host itself batches conditionings while its memory estimate times this factor fits into free memory.
MEMORY_MARGIN = 1.5

MOST_CHECKS = 4
"""The largest number of comparisons in a run. More than one happens only where the gates make no difference at first."""


@dataclass
class Verdicts:
    """What earlier runs with the same adapters found out.

    Args:
        right: whether calls with several rows of gates were right, by the kind of call: the shapes of its inputs and its number
            of rows.
        trees: the modules of the networks.
    """

    right: dict[Hashable, bool] = field(default_factory=dict)
    trees: ModuleTrees = field(default_factory=ModuleTrees)


class RowEvaluator:
    """Evaluates plans in one sampling run.

    Args:
        evaluation: "auto", "batched" or "sequential".
        verdicts: of earlier runs with the same network and adapters. New ones are added.
    """

    def __init__(self, evaluation: str, verdicts: Verdicts) -> None:
        self.evaluation, self._verdicts = evaluation, verdicts
        self._here = Verdicts()  # of calls with code of other nodes, which may be another one in the next run
        self.most_rows = 1 if evaluation == "sequential" else 2**31  # lowered when a batched call does not fit
        self._checks = 0
        self._said: set[str] = set()

    def evaluate(
        self, network: Network, target: GatedNetwork, call: ModelCall, rows: tuple[Row, ...]
    ) -> Iterator[Tensor]:
        """Predict for each row of gates.

        Returns:
            K predictions, float32[N, ...], in order.
        """
        left = list(rows)
        while left:
            comfy.model_management.throw_exception_if_processing_interrupted()
            count = self._rows_that_fit(network, call, left)
            if count == 1:
                yield self._single(target, call, left.pop(0))
                continue
            predictions = self._batch(target, call, left[:count])
            if predictions is not None:
                del left[:count]
                yield from predictions

    def _single(self, target: GatedNetwork, call: ModelCall, row: Row) -> Tensor:
        if len(row) == 1:
            return target.predict(call, [row])[0]
        key = ("images", len(row), call.kind)
        if self._verdict(call, key) is False:
            return target.predict_one_by_one(call, row)
        try:
            prediction = target.predict(call, [row])[0]
        except RowsDoNotFit:
            self._judge(call, key, False)
            return target.predict_one_by_one(call, row)
        if self._is_due(call, key):
            last = target.predict(call, [row[-1:]])[0]
            alike, others = _images(call, row, like=True), _images(call, row, like=False)
            pair = Comparison(prediction[alike], last[alike], call.x[alike])
            shown = shows_a_difference(prediction[others], last[others], call.x[others])
            self._compare(call, key, pair, lambda: target.predict_alike(call, row[-1], len(row))[alike], shown)
            if self._verdict(call, key) is False:
                return target.predict_one_by_one(call, row)
        return prediction

    def _batch(self, target: GatedNetwork, call: ModelCall, rows: list[Row]) -> tuple[Tensor, ...] | None:
        """The predictions, or None where the rows have to be evaluated in smaller numbers."""
        key = ("rows", len(rows), call.kind)
        if self._verdict(call, key) is False:
            self.most_rows = 1
            self._say(ONE_BY_ONE)
            return None
        predictions = None
        try:
            predictions = target.predict(call, rows)
        except RowsDoNotFit:
            self._judge(call, key, False)
            return None
        except torch.cuda.OutOfMemoryError:
            self.most_rows = len(rows) // 2
        if predictions is None:  # outside of the handler, whose traceback holds the failed call's tensors
            comfy.model_management.soft_empty_cache()
            return None
        if self._is_due(call, key):
            last = target.predict(call, rows[-1:])[0]
            shown = any(shows_a_difference(other, predictions[-1], call.x) for other in predictions[:-1])
            pair = Comparison(predictions[-1], last, call.x)
            self._compare(call, key, pair, lambda: target.predict(call, rows[-1:] * len(rows))[-1], shown)
            if self._verdict(call, key) is False:
                return None
        return predictions

    def _rows_that_fit(self, network: Network, call: ModelCall, rows: list[Row]) -> int:
        """The number of rows of the plan that the next call takes."""
        count = min(len(rows), self.most_rows)
        if self.evaluation == "auto" and comfy.model_management.is_device_cpu(call.x.device):
            return 1  # a CPU gains nothing from a larger batch (docs/speed.md)
        if count > 1 and any(len(row) > 1 for row in rows[:count]):
            return 1
        if count > 1 and call.foreign_patches:
            if self.evaluation == "batched":
                self._say(PATCHED.format(", ".join(call.foreign_patches)))
            return 1
        if count > 1 and call.foreign_wrappers:  # a cache counts calls and compares their shapes
            if self.evaluation == "batched":
                self._say(WRAPPED)
            return 1
        while count > 1 and network.memory_required(*call.memory_shapes(count)) * MEMORY_MARGIN >= free_memory(
            network, call.x.device
        ):
            count //= 2
        return count

    def _book(self, call: ModelCall) -> Verdicts:
        return self._here if call.foreign_patches or call.foreign_wrappers else self._verdicts

    def _verdict(self, call: ModelCall, key: Hashable) -> bool | None:
        return self._book(call).right.get(key)

    def _is_due(self, call: ModelCall, key: Hashable) -> bool:
        return self._verdict(call, key) is None and self._checks < MOST_CHECKS

    def _compare(
        self, call: ModelCall, key: Hashable, comparison: Comparison, uniform: Callable[[], Tensor], shown: bool
    ) -> None:
        self._checks += 1
        if not agrees(comparison, uniform):
            self._judge(call, key, False)
        elif shown:
            self._judge(call, key, True)

    def _judge(self, call: ModelCall, key: Hashable, right: bool) -> None:
        self._book(call).right[key] = right
        if not right and isinstance(key, tuple):
            self._say(ONE_BY_ONE if key[0] == "rows" else IMAGE_BY_IMAGE)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            notify(text)


ONE_BY_ONE = (
    "This model mixes the rows of a batch, so a batched blend would be wrong. The blend is evaluated one row at a time: the "
    "image is right, and takes longer."
)
IMAGE_BY_IMAGE = (
    "This model mixes the images of a batch, so they cannot have different adapters in one call. Each adapter that is drawn gets "
    "a call of its own: the images are right, and take longer."
)
PATCHED = (
    "Other nodes patch this model's layers ({}) and may not know of a batched blend. So the blend is evaluated one row at a "
    "time."
)
WRAPPED = (
    "Other nodes wrap this model's calls (EasyCache does, for example) and may not know of a batched blend. So the blend is "
    "evaluated one row at a time."
)


def free_memory(network: Network, device: torch.device) -> int:
    """The bytes that the host would let a call use: by its patcher where that version can tell (0.14 can, 0.8 cannot)."""
    patcher = network.current_patcher
    if hasattr(patcher, "get_free_memory"):
        return patcher.get_free_memory(device)
    return comfy.model_management.get_free_memory(device)


def _images(call: ModelCall, row: Row, like: bool) -> list[int]:
    """The inputs of a call whose gates are, or are not, those of the last image."""
    return [number for number, gates in enumerate(call.gates_of_batch(row)) if (gates == row[-1]) == like]
