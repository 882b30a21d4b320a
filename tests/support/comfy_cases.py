"""Nodes of the host around a blend: every method, each compared with copies of the checkpoint that the host patched itself.

The blend of two unlike adapters is compared with the sum of their copies' predictions, sequential and batched. The other methods
are compared where their answer is known: two equal adapters are that one adapter, whatever is drawn, averaged or extrapolated.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy_graphs
import comfy_models
import torch
from comfy_world import blend_model, difference, load_loras, preference
from torch import Tensor

WEIGHTS = (0.3, 0.7)
TOLERANCE = 1e-4
METHODS = ("blend", "batched", "stochastic", "soup", "early")
RIGHT, REFUSED, ABSENT = "right", "refused", "-"
WITHIN = "right within the cache's own error"


@dataclass(frozen=True)
class Case:
    """A node of the host on a MODEL.

    Args:
        name: for the table.
        module: of ``comfy_extras``; empty for none.
        node: the class.
        kind: the checkpoint.
        inputs: those that are not the defaults.
        latent: the latent's batch and size.
        steps: of the run.
        sampling: changes of the run's inputs, made from the world.
        run: another way to sample than KSampler's, of the world and a MODEL.
        truth: another reference than the copies' sum, of the world, the adapters and their weights.
        own: whether the node holds tensors of the network, so that each copy has to have a node of its own.
        approximates: for a node that approximates by what it has cached: the run's changes that give the exact result without it.
    """

    name: str
    module: str = ""
    node: str = ""
    kind: str = "sd15"
    inputs: dict[str, Any] = field(default_factory=dict)
    latent: tuple[int, int] = (2, 8)
    steps: int = 3
    sampling: Callable[[Any], dict[str, Any]] | None = None
    run: Callable[[Any, Any], Tensor] | None = None
    truth: Callable[[Any, Sequence[Any], Sequence[float]], Tensor] | None = None
    own: bool = False
    approximates: Callable[[Any], dict[str, Any]] | None = None

    def exists(self) -> bool:
        """Whether this version of the host has the node."""
        try:
            return not self.node or hasattr(importlib.import_module(f"comfy_extras.{self.module}"), self.node)
        except ImportError:
            return False

    def put_on(self, model: Any) -> Any:
        """The MODEL with the node on it."""
        return node_output(self.module, self.node, model=model, **self.inputs) if self.node else model.clone()


def defaults_of(node: Any) -> dict[str, Any]:
    """The default of every input of a node, of the host's first or third way to write one."""
    if hasattr(node, "define_schema"):
        inputs = node.define_schema().inputs
        options = {each.id: getattr(each, "options", None) for each in inputs}
        given = {each.id: getattr(each, "default", None) for each in inputs}
        return {name: options[name][0] if value is None and options[name] else value for name, value in given.items()}
    given = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in node.INPUT_TYPES().get(group, {}).items():
            given[name] = (rest[0] if rest else {}).get("default", kind[0] if isinstance(kind, (list, tuple)) else None)
    return given


def node_output(module: str, name: str, **inputs: Any) -> Any:
    """The first output of a node of the host with its defaults, on each of its versions."""
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    function = node.execute if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)
    known = inspect.signature(function).parameters
    output = function(**{key: value for key, value in (defaults_of(node) | inputs).items() if key in known})
    return getattr(output, "args", output)[0]


GUIDANCE = [
    Case("RescaleCFG", "nodes_model_advanced", "RescaleCFG"),
    Case("Perturbed-Attention Guidance", "nodes_pag", "PerturbedAttentionGuidance"),
    Case("Self-Attention Guidance", "nodes_sag", "SelfAttentionGuidance", latent=(1, 16)),
    Case("Skip Layer Guidance (SD3)", "nodes_sd3", "SkipLayerGuidanceSD3", "sd3",
         {"layers": "1", "start_percent": 0.0, "end_percent": 1.0}),
    Case("Skip Layer Guidance (DiT)", "nodes_slg", "SkipLayerGuidanceDiT", "sd3",
         {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}),
    Case("Skip Layer Guidance (DiT, simple)", "nodes_slg", "SkipLayerGuidanceDiTSimple", "sd3",
         {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}),
    Case("Normalized Attention Guidance", "nodes_nag", "NAGuidance"),
    Case("TCFG", "nodes_tcfg", "TCFG"),
    Case("Mahiro", "nodes_mahiro", "Mahiro"),
    Case("APG", "nodes_apg", "APG"),
    Case("CFGZeroStar", "nodes_cfg", "CFGZeroStar"),
    Case("CFGNorm", "nodes_cfg", "CFGNorm"),
    Case("FreSca", "nodes_fresca", "FreSca"),
]  # fmt: skip
CACHED = {"reuse_threshold": 0.5, "start_percent": 0.0, "end_percent": 1.0}
NETWORK = [
    Case("HyperTile", "nodes_hypertile", "HyperTile", inputs={"tile_size": 32, "swap_size": 1}, latent=(1, 16)),
    Case("Token merging", "nodes_tomesd", "TomePatchModel", latent=(1, 16)),
    Case("Kohya Deep Shrink", "nodes_model_downscale", "PatchModelAddDownscale",
         inputs={"block_number": 1, "end_percent": 1.0}, latent=(1, 16)),
    Case("FreeU", "nodes_freelunch", "FreeU"),
    Case("FreeU V2", "nodes_freelunch", "FreeU_V2"),
    Case("Differential Diffusion", "nodes_differential_diffusion", "DifferentialDiffusion", "sd3",
         sampling=comfy_graphs.masked),
    Case("EasyCache", "nodes_easycache", "EasyCacheNode", "sd15", CACHED, (1, 8), 10, approximates=lambda _: {}),
    Case("LazyCache", "nodes_easycache", "LazyCacheNode", "sd3", CACHED, (1, 8), 10, approximates=lambda _: {}),
    Case("Flux KV Cache", "nodes_flux", "FluxKVCache", "flux2", latent=(1, 8), sampling=comfy_graphs.references, own=True,
         approximates=comfy_graphs.references_at_zero),
]  # fmt: skip
WINDOW, MANUAL = "nodes_context_windows", "ContextWindowsManualNode"
MANUAL_INPUTS = {"context_length": 2, "context_overlap": 1, "freenoise": False}
SCHEDULE = [
    Case("ModelSamplingDiscrete (v-prediction)", "nodes_model_advanced", "ModelSamplingDiscrete",
         inputs={"sampling": "v_prediction"}),
    Case("ModelSamplingContinuousEDM", "nodes_model_advanced", "ModelSamplingContinuousEDM"),
    Case("ModelSamplingContinuousV", "nodes_model_advanced", "ModelSamplingContinuousV"),
    Case("ModelSamplingSD3", "nodes_model_advanced", "ModelSamplingSD3", "sd3"),
    Case("ModelSamplingAuraFlow", "nodes_model_advanced", "ModelSamplingAuraFlow", "sd3"),
    Case("ModelSamplingFlux", "nodes_model_advanced", "ModelSamplingFlux", "flux"),
    Case("Epsilon Scaling", "nodes_eps", "EpsilonScaling"),
    Case("Split Sigmas in two stages", kind="sd3", run=comfy_graphs.in_two_stages),
    Case("Latent From Batch", kind="sd3", sampling=comfy_graphs.later_images),
]  # fmt: skip
WINDOWS = [
    Case("Context windows over the batch (dim 0)", WINDOW, MANUAL, "sd3", MANUAL_INPUTS | {"dim": 0}, (4, 8)),
    Case("Context windows over the batch, uniform", WINDOW, MANUAL, "sd3",
         MANUAL_INPUTS | {"dim": 0, "context_schedule": "standard_uniform"}, (4, 8)),
    Case("Context windows over frames (dim 2)", WINDOW, MANUAL, "wan", MANUAL_INPUTS | {"dim": 2},
         sampling=comfy_graphs.frames),
    Case("Wan Context Windows", WINDOW, "WanContextWindowsManualNode", "wan",
         {"context_length": 9, "context_overlap": 4}, sampling=comfy_graphs.frames),
]  # fmt: skip
CONDITIONING = [
    Case("Two conditionings of unequal length", kind="sd3", sampling=comfy_graphs.two_conditionings),
    Case("Dual CFG Guider", kind="sd3", run=comfy_graphs.with_two_prompts("regular")),
    Case("Dual CFG Guider, nested", kind="sd3", run=comfy_graphs.with_two_prompts("nested")),
    Case("ControlNet", sampling=comfy_graphs.controlled),
    Case("GLIGEN", sampling=comfy_graphs.boxed),
    Case("Create Hook LoRA", sampling=comfy_graphs.hooked, truth=comfy_graphs.hooked_reference),
]
CASES = [*GUIDANCE, *NETWORK, *SCHEDULE, *WINDOWS, *CONDITIONING]


def sample(world: Any, case: Case, model: Any) -> Tensor:
    """The case's run on a MODEL."""
    if case.run is not None:
        return case.run(world, model)
    changes = case.sampling(world) if case.sampling else {}
    latent = comfy_models.latent(case.kind, *case.latent)
    return world.sample(model, **{"steps": case.steps, "latent": latent} | changes)


def reference(world: Any, case: Case, adapters: Sequence[Any], weights: Sequence[float]) -> Tensor:
    """The sum of the patched copies' predictions, with the node on it."""
    if case.truth is not None:
        return case.truth(world, adapters, weights)
    if len(adapters) == 1:
        return sample(world, case, case.put_on(world.patched.model(*adapters)))
    own = case.put_on if case.own else None
    return sample(world, case, world.patched.blended(adapters, weights, like=case.put_on(world.model), own=own))


def without_cache(world: Any, case: Case) -> Case:
    """The case by the exact computation that its node approximates."""
    assert case.approximates is not None
    changes = (case.sampling(world) if case.sampling else {}) | case.approximates(world)
    return replace(case, node="", own=False, sampling=lambda _: changes)


def outcome(world: Any, case: Case, method: str) -> str:
    """Run one method of a case: "right", "refused: ...", or by how much it is wrong."""
    if method in ("blend", "batched"):
        copies, loras, wanted = (world.adapters[:2], WEIGHTS), world.loras(2), preference(*WEIGHTS)
    else:
        copies, loras, wanted = (world.adapters[:1], (1.0,)), load_loras([world.files[0]] * 2), preference(1, 1)
    expected = reference(world, case, *copies)
    kind, evaluation = ("blend", method) if method == "batched" else (method, "sequential")
    try:
        model = blend_model(case.put_on(world.model), loras, wanted, kind, evaluation=evaluation)
        result = sample(world, case, model)
    except ValueError as refusal:
        return f"{REFUSED}: {refusal}"
    error = difference(result, expected)
    if error >= TOLERANCE and case.approximates and method not in ("blend", "soup"):
        # The cache sees other calls, and chooses other ones to skip. It must be no farther from the exact result.
        exact = reference(world, without_cache(world, case), *copies)
        if difference(result, exact) < 1.05 * difference(expected, exact):
            return WITHIN
    return RIGHT if error < TOLERANCE else f"wrong by {error:.1e}"


def outcomes(world: Any, case: Case, methods: Sequence[str] = METHODS) -> dict[str, str]:
    """Run a case by several methods, and the plain model before and after, which has to be the same bit for bit."""
    before = sample(world, case, case.put_on(world.model))
    found = {method: outcome(world, case, method) for method in methods}
    after = sample(world, case, case.put_on(world.model))
    return found | {"plain": RIGHT if torch.equal(before, after) else f"wrong by {difference(after, before):.1e}"}
