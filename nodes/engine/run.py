"""One sampling run: installs the hooks, predicts every call by the plan, and always removes the hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.combine import combine
from ...blending.plans import Planner
from ...blending.residual_cache import ResidualCache
from ...blending.step_info import StepInfo
from ..host import Executor, Patcher
from .calls import ModelCall
from .gated import GatedNetwork
from .gated_texts import GatedTexts, layers_that_run
from .images import ImageIndices
from .module_tree import ModuleTree
from .rows import RowEvaluator, Verdicts
from .steps import StepTracker
from .texts import CallTexts, prepared_conds, texts_of_run

logger = logging.getLogger("diffusion_blend")

KEY = "diffusion_blend"
"""The name of the extension's wrappers and adapters on a MODEL."""


AUTOREGRESSIVE = (
    "The sampler ar_video holds the keys and values of the frames before, for one set of weights, and this method evaluates "
    "several. Use the method 'soup' or 'stochastic', or another sampler."
)


TWICE = (
    "{} of the adapters' layers prepare the text inside this network, which cannot be combined with Blend Text Encoder yet. "
    "Connect the CLIP directly for this workflow."
)


class BlendRun:
    """The state of one sampling run.

    Args:
        bank: the adapters' factors.
        planner: makes the plan of a step.
        evaluation: "auto", "batched" or "sequential".
        images: image indices of the batch, None for 0, 1, 2, ...
        verdicts: of earlier runs, on calls with several rows of gates.
        names: of the adapters that have a weight of their own, in order.
    """

    def __init__(
        self,
        bank: AdapterBank,
        planner: Planner,
        evaluation: str,
        images: tuple[int, ...] | None,
        verdicts: Verdicts,
        names: tuple[str, ...],
    ) -> None:
        self.bank, self.planner, self.evaluation, self.images = bank, planner, evaluation, images
        self.verdicts, self.names = verdicts, names
        self.rows = RowEvaluator(evaluation, verdicts)
        self.networks: dict[int, GatedNetwork] = {}
        self.residuals = ResidualCache()
        self.calls_of_evaluation: Counter[Hashable] = Counter()  # by conditioning
        self.steps: StepTracker
        self.checked = False
        self.texts: CallTexts | None = None
        self._watch = ExitStack()  # until the host has prepared the conditionings
        self._on_texts: set[str] = set()  # adapters' layers that ran on the texts

    def __enter__(self) -> BlendRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove every hook. A second call has no effect."""
        self._watch.close()
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
        modules, layers = self.verdicts.trees.of(executor.class_obj.model_patcher.model).named(), self.bank.names()
        ids = {id(module): name for name, module in modules.items() if name in layers}
        try:
            self._on_texts = self._watch.enter_context(layers_that_run(ids))
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
        self._watch.close()
        names = ("sigmas", "extra_args", "callback", "noise", "latent_image", "denoise_mask", "disable_pbar")
        named = dict(zip(names, args, strict=False)) | kwargs
        options = {name: named.get(name) for name in ("latent_image", "denoise_mask")}
        options["seed"], noise = named["extra_args"].get("seed"), named["noise"]
        self.texts = texts_of_run(guider, noise, self.names, **options)
        if self._on_texts and self.texts is not None:
            raise ValueError(TWICE.format(len(self._on_texts)))
        if self._on_texts:
            every = [(kind, cond) for kind, conds in guider.conds.items() for cond in conds]
            prepare = partial(prepared_conds, guider, noise=noise, **options)
            self.texts = GatedTexts(every, prepare, self._gated(guider.inner_model).gated, self.bank.adapters)
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
            self._check_called(target, call)
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
            tree = self.verdicts.trees.of(network)
            _refuse_compiled(tree)
            # Registered before the installation, so that its hooks are removed even if it is interrupted.
            target = self.networks[id(network)] = GatedNetwork(self.bank, network, tree)
            target.install()
        return target

    def _check_called(self, target: GatedNetwork, call: ModelCall) -> None:
        self.checked, path = True, target.path
        missed = path.never_called()
        if missed and not path.any_called():
            raise RuntimeError(
                f"None of the adapters' {len(missed)} layers was called, so the image would be the base model's. Another node "
                "replaces or compiles the network's code: remove that node, or use ComfyUI's Load LoRA."
            )
        bypassed = path.bypassed()
        # Networks have layers that they call for certain inputs only, or never. The weight of such a layer is not read either.
        used = target.weights_read(call, bypassed) if bypassed else set()
        if used:
            raise RuntimeError(
                f"{len(used)} of the adapters' layers were not called, although the module around them was, so the adapters "
                f"would have no effect there: {', '.join(sorted(used)[:5])}. A fused or quantised kernel, or another node, "
                "replaces these layers: load the model in another precision, remove that node, or use ComfyUI's Load LoRA."
            )
        if missed:
            logger.warning(
                "%d of the adapters' layers were not called and have no effect: this run does not use that part of the model: %s",
                len(missed),
                ", ".join(missed),
            )


def _refuse_compiled(tree: ModuleTree) -> None:
    """Refuse a network with compiled parts, because code that was compiled before the hooks does not call them."""
    name = tree.compiled()
    if name is not None:
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
