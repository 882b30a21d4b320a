"""One sampling run: installs the hooks, predicts every call by the plan, and always removes the hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from types import TracebackType
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.combine import combine
from ...blending.plans import Planner
from ...blending.residual_cache import ResidualCache
from ...blending.side_path import SidePath
from ...blending.step_info import StepInfo
from ..host import Executor, Network, Patcher
from .calls import ModelCall
from .gated import GatedNetwork
from .images import ImageIndices
from .rows import RowEvaluator, Verdicts
from .steps import StepTracker
from .texts import RunTexts, texts_of_run

logger = logging.getLogger("diffusion_blend")

KEY = "diffusion_blend"
"""The name of the extension's wrappers and adapters on a MODEL."""


AUTOREGRESSIVE = (
    "The sampler ar_video holds the keys and values of the frames before, for one set of weights, and this method evaluates "
    "several. Use the method 'soup' or 'stochastic', or another sampler."
)


class BlendRun:
    """The state of one sampling run.

    Args:
        bank: the adapters' factors.
        planner: makes the plan of a step.
        evaluation: "auto", "batched" or "sequential".
        images: image indices of the batch, None for 0, 1, 2, ...
        verdicts: of earlier runs, on calls with several rows of gates.
    """

    def __init__(
        self,
        bank: AdapterBank,
        planner: Planner,
        evaluation: str,
        images: tuple[int, ...] | None,
        verdicts: Verdicts,
    ) -> None:
        self.bank, self.planner, self.evaluation, self.images = bank, planner, evaluation, images
        self.rows = RowEvaluator(evaluation, verdicts)
        self.networks: dict[int, GatedNetwork] = {}
        self.residuals = ResidualCache()
        self.calls_of_evaluation: Counter[Hashable] = Counter()  # by conditioning
        self.steps: StepTracker
        self.checked = False
        self.texts: RunTexts | None = None

    def __enter__(self) -> BlendRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove every hook. A second call has no effect."""
        for network in self.networks.values():
            network.remove()
        self.networks.clear()

    def sample(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's OUTER_SAMPLE: run it with this run's wrappers around every model call.

        Args:
            executor: the host's next wrapper. Its ``class_obj`` is the guider, whose options are a copy for this run.
            args: noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed; later hosts add more.
        """
        named = dict(zip(_OUTER_SAMPLE_NAMES, args, strict=False)) | kwargs
        images = ImageIndices(self.images, named["noise"], named.get("seed"))
        caller = name_of(executor.class_obj.model_options.get("model_function_wrapper"))
        self.steps = StepTracker(named["sampler"], named.get("seed"), images, named["noise"].shape, caller)
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
        add_wrapper(WrappersMP.SAMPLER_SAMPLE, KEY, self.prepare_texts, options)
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

    def prepare_texts(self, executor: Executor, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's SAMPLER_SAMPLE, which is called when the guider has prepared its conditionings."""
        names = ("sigmas", "extra_args", "callback", "noise", "latent_image", "denoise_mask", "disable_pbar")
        named = dict(zip(names, args, strict=False)) | kwargs
        options = {name: named.get(name) for name in ("latent_image", "denoise_mask")}
        seed = named["extra_args"].get("seed")
        self.texts = texts_of_run(guider, named["noise"], self.bank.adapters, seed=seed, **options)
        return executor(guider, *args, **kwargs)

    def predict_noise(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        """Wrap the host's PREDICT_NOISE, which is called once per evaluation of the sampler, for any number of model calls."""
        if not getattr(self.planner, "repeats_evaluation", False):  # a probe evaluates several methods on one input
            self.steps.begin_evaluation()
        self.calls_of_evaluation.clear()
        return executor(*args, **kwargs)

    def apply_model(self, executor: Executor, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Wrap the host's APPLY_MODEL, which is called once per chunk of conditionings.

        Returns:
            The plan's x0 prediction, float32[N, ...]. Rows are conditioning-major: all images of the first conditioning,
            then all of the second.
        """
        network = executor.class_obj
        call = ModelCall(executor, x, t, args, kwargs, self.texts)
        step = self.steps.step_info(call.transformer_options, t, call.images, x.shape)
        plan = self.planner(step)
        keys = self._keys(call)
        if plan.without_residual is not None and not self.residuals.covers(keys, x.shape):
            plan = plan.without_residual
        if len(plan.gates) > 1 and call.transformer_options.get("ar_state") is not None:
            raise ValueError(AUTOREGRESSIVE)
        target = self._gated(network)
        if plan.residual_mix is None:
            denoised = combine(self.rows.evaluate(network, target, call, plan.gates), plan.mix)
        else:
            rows = list(self.rows.evaluate(network, target, call, plan.gates))
            denoised = combine(rows, plan.mix)
            self.residuals.store(keys, combine(rows, plan.residual_mix), t, step.index)
        if plan.extrapolation is not None:
            denoised = self.residuals.extrapolate(keys, denoised, t, plan.extrapolation)
        if not self.checked:
            self._check_called(target.path)
        return denoised

    def _keys(self, call: ModelCall) -> list[Hashable]:
        """Keys of a call's conditionings. Tiles and windows ask for the same conditioning several times in an evaluation."""
        keys: list[Hashable] = []
        for conditioning in call.conditionings:
            keys.append((conditioning, self.calls_of_evaluation[conditioning]))
            self.calls_of_evaluation[conditioning] += 1
        return keys

    def _gated(self, network: Any) -> GatedNetwork:
        """The network that runs, which may be another copy than the one that the MODEL names, with the side path."""
        target = self.networks.get(id(network))
        if target is None:
            _refuse_compiled(network)
            # Registered before the installation, so that its hooks are removed even if it is interrupted.
            target = self.networks[id(network)] = GatedNetwork(self.bank, network)
            target.path.install(network)
        return target

    def _check_called(self, path: SidePath) -> None:
        self.checked = True
        missed = path.never_called()
        if missed and not path.any_called():
            raise RuntimeError(
                f"None of the adapters' {len(missed)} layers was called, so the image would be the base model's. Another node "
                "replaces or compiles the network's code: remove that node, or use ComfyUI's Load LoRA."
            )
        bypassed = path.bypassed()
        if bypassed:
            raise RuntimeError(
                f"{len(bypassed)} of the adapters' layers were not called, although the module around them was, so the adapters "
                f"would have no effect there: {', '.join(bypassed[:5])}. A fused or quantised kernel, or another node, replaces "
                "these layers: load the model in another precision, remove that node, or use ComfyUI's Load LoRA."
            )
        if missed:
            logger.warning(
                "%d of the adapters' layers were not called and have no effect: this run does not use that part of the model: %s",
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


def name_of(function: Any) -> str:
    """The name of another node's function or callable object, with its module; empty for None."""
    if function is None:
        return ""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


_OUTER_SAMPLE_NAMES = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed")
