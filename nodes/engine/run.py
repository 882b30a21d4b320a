"""One sampling run: installs the hooks, predicts every call by the plan, and always removes the hooks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.combine import combine
from ...blending.plans import Gates, Plan, Planner
from ...blending.residual_cache import ResidualCache
from ...blending.side_path import RowsDoNotFit, SidePath
from ...blending.step_info import StepInfo
from ..host import Executor, Network, Patcher
from .calls import ModelCall
from .steps import StepTracker

logger = logging.getLogger("diffusion_blend")

KEY = "diffusion_blend"
"""The name of the extension's wrappers and adapters on a MODEL."""

# The host itself batches conditionings while its memory estimate times this factor fits into free memory.
MEMORY_MARGIN = 1.5


class BlendRun:
    """The state of one sampling run.

    Args:
        bank: the adapters' factors.
        planner: makes the plan of a step.
        evaluation: "auto", "batched" or "sequential".
        images: image indices of the batch, None for 0, 1, 2, ...
    """

    def __init__(self, bank: AdapterBank, planner: Planner, evaluation: str, images: tuple[int, ...] | None) -> None:
        self.bank, self.planner, self.evaluation, self.images = bank, planner, evaluation, images
        self.paths: dict[int, SidePath] = {}
        self.residuals = ResidualCache()
        self.steps: StepTracker
        self.most_rows = 1 if evaluation == "sequential" else 2**31  # lowered when a batched call does not fit
        self.checked = False

    def __enter__(self) -> BlendRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove every hook. A second call has no effect."""
        for path in self.paths.values():
            path.remove()
        self.paths.clear()

    def sample(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's OUTER_SAMPLE: run it with this run's wrappers around every model call.

        Args:
            executor: the host's next wrapper. Its ``class_obj`` is the guider, whose options are a copy for this run.
            args: noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed; later hosts add more.
        """
        named = dict(zip(_OUTER_SAMPLE_NAMES, args, strict=False)) | kwargs
        self.steps = StepTracker(named["sampler"], named.get("seed"), self.images, named["noise"].shape)
        rest = args[len(_OUTER_SAMPLE_NAMES) :]
        named["callback"] = self.steps.observe(named.get("callback"))
        options = executor.class_obj.model_options["transformer_options"]
        options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(options.get("wrappers", {}))
        if options["wrappers"].get(WrappersMP.APPLY_MODEL, {}).pop("torch.compile", None):
            logger.warning(
                "The MODEL runs without torch.compile while it is blended: compiled code would not call the adapters."
            )
        add_wrapper = comfy.patcher_extension.add_wrapper_with_key
        add_wrapper(WrappersMP.PREDICT_NOISE, KEY, self.predict_noise, options)
        add_wrapper(WrappersMP.APPLY_MODEL, KEY, self.apply_model, options)
        if self.evaluation == "batched":
            add_wrapper(WrappersMP.PREPARE_SAMPLING, KEY, self.prepare, options)
        first = [named.pop(name) for name in _OUTER_SAMPLE_NAMES if name in named]
        try:
            return executor(*first, *rest, **named)
        finally:
            # An interrupt is no Exception, so only `finally` cleans up. __exit__ repeats it, in case this block is cut off.
            self.remove()

    def prepare(self, executor: Executor, model: Patcher, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's PREPARE_SAMPLING: let it free memory for all rows of the plan in one call."""
        # A schedule may need more rows in the middle than at its ends. The pixels of a region do not change the rows.
        rows = max(len(self.planner(StepInfo(index, 3, self.steps.seed)).gates) for index in range(3))
        return executor(model, [noise_shape[0] * rows, *noise_shape[1:]], *args, **kwargs)

    def predict_noise(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's PREDICT_NOISE, which is called once per evaluation of the sampler, for any number of model calls."""
        self.steps.begin_evaluation()
        return executor(*args, **kwargs)

    def apply_model(self, executor: Executor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Wrap the host's APPLY_MODEL, which is called once per chunk of conditionings.

        Returns:
            The plan's x0 prediction, float32[N, ...]. Rows are conditioning-major: all images of the first conditioning,
            then all of the second.
        """
        network = executor.class_obj
        call = ModelCall(executor, x, t, args, kwargs)
        step = self.steps.step_info(call.transformer_options, t, call.images, x.shape)
        plan = self.planner(step)
        path = self._path(network)
        if plan.residual_mix is None:
            denoised = combine(self._evaluate(network, path, call, plan), plan.mix)
        else:
            rows = list(self._evaluate(network, path, call, plan))
            denoised = combine(rows, plan.mix)
            self.residuals.store(call.conditionings, combine(rows, plan.residual_mix), t, step.index)
        if plan.extrapolation is not None:
            denoised = self.residuals.extrapolate(call.conditionings, denoised, t, plan.extrapolation)
        if not self.checked:
            self._check_called(path)
        return denoised

    def _evaluate(self, network: Network, path: SidePath, call: ModelCall, plan: Plan) -> Iterator[Tensor]:
        rows = list(plan.gates)
        done = 0
        while done < len(rows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            count = self._rows_that_fit(network, call, len(rows) - done)
            try:
                predictions = _predict(path, call, rows[done : done + count])
            except (RowsDoNotFit, torch.cuda.OutOfMemoryError):
                if count == 1:
                    raise
                self.most_rows = count // 2
                comfy.model_management.soft_empty_cache()
                continue
            yield from predictions
            done += count

    def _rows_that_fit(self, network: Network, call: ModelCall, rows: int) -> int:
        """The number of rows of the plan that one call takes."""
        rows = min(rows, self.most_rows)
        if self.evaluation == "auto" and comfy.model_management.is_device_cpu(call.x.device):
            return 1  # a CPU gains nothing from a larger batch (docs/speed.md)
        while rows > 1 and network.memory_required(*call.memory_shapes(rows)) * MEMORY_MARGIN >= free_memory(
            network, call.x.device
        ):
            rows //= 2
        return rows

    def _path(self, network: Any) -> SidePath:
        """The side path on the network that runs, which may be another copy than the one that the MODEL names."""
        path = self.paths.get(id(network))
        if path is None:
            _refuse_compiled(network)
            # Registered before the installation, so that its hooks are removed even if it is interrupted.
            path = self.paths[id(network)] = SidePath(self.bank)
            path.install(network)
        return path

    def _check_called(self, path: SidePath) -> None:
        self.checked = True
        missed = path.never_called()
        if missed and not path.any_called():
            raise RuntimeError(
                f"None of the adapters' {len(missed)} layers was called, so the image would be the base model's. Another node "
                "replaces or compiles the network's code: remove that node, or use ComfyUI's Load LoRA."
            )
        if missed:
            logger.warning(
                "%d of the adapters' layers were not called and have no effect (a fused or replaced kernel?): %s",
                len(missed),
                ", ".join(missed),
            )


def _refuse_compiled(network: Network) -> None:
    """Refuse a network with compiled parts, because code that was compiled before the hooks does not call them."""
    for name, module in network.named_modules():
        # torch marks modules compiled in place by the first attribute; others wrap the original as the second.
        if getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules:
            raise ValueError(
                f"{name or 'The network'} is compiled by torch.compile, and compiled code does not call the blended adapters: "
                "the image would be the base model's. Remove the node that compiles this MODEL."
            )


_OUTER_SAMPLE_NAMES = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed")


def free_memory(network: Network, device: torch.device) -> int:
    """The bytes that the host would let a call use: by its patcher where that version can tell (0.14 can, 0.8 cannot)."""
    patcher = network.current_patcher
    if hasattr(patcher, "get_free_memory"):
        return patcher.get_free_memory(device)
    return comfy.model_management.get_free_memory(device)


def _predict(path: SidePath, call: ModelCall, rows: list[tuple[Gates, ...]]) -> tuple[Tensor, ...]:
    if len(rows) == 1:
        with path.gated(call.gates_of_batch(rows[0])):
            return (call(rows),)
    gates = tuple(gates for row in rows for gates in call.gates_of_each(row))
    with path.gated(gates):
        return call(rows).chunk(len(rows))
