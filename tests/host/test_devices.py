"""The host's copies of a blended MODEL for further devices, and the adapters in its memory management."""

import contextlib

import comfy.model_patcher
import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, preference
from diffusion_blend.blending.side_path import SidePath
from torch.utils._python_dispatch import TorchDispatchMode


def test_the_adapters_patcher_is_of_the_hosts_own_kind(sd3):
    (bank,) = blend_model(sd3.model, sd3.loras(2), preference(1, 1)).get_additional_models_with_key("diffusion_blend")
    assert type(bank) is getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def test_the_hosts_copy_for_another_device_blends_as_the_first(sd3):
    """As the split of a model over several GPUs; the other device is the CPU again."""
    if not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"):
        pytest.skip("this host does not split a model over devices")
    tensors = comfy_models.state_dict("sd3")
    base = comfy_models.load_tensors(tensors, dtype=torch.float32)
    base.cached_patcher_init = (lambda: comfy_models.load_tensors(tensors, dtype=torch.float32), ())
    blended = blend_model(base, sd3.loras(2), preference(0.3, 0.7))
    expected = sd3.sample(blended)
    copied = blended.deepclone_multigpu(torch.device("cpu"))
    assert copied.model is not blended.model
    (first,), (second,) = (each.get_additional_models_with_key("diffusion_blend") for each in (blended, copied))
    assert first.model is not second.model
    assert difference(sd3.sample(copied), expected) < 1e-6
    assert hooks_on(copied) == hooks_on(blended) == 0


@contextlib.contextmanager
def recording(network):
    """Note which storages were allocated during the network's calls, and whether the host's compiler was paused then.

    A double of the host's compiler, which expects the same allocations at every call of a block.
    """
    allocated, held, state = {}, [], {"inside": False, "paused": False}

    class Track(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if state["inside"] and isinstance(output, torch.Tensor):
                storage = output.untyped_storage()
                given = {part.untyped_storage().data_ptr() for part in args if isinstance(part, torch.Tensor)}
                if storage.data_ptr() not in given | allocated.keys():  # no view of an earlier tensor
                    allocated[storage.data_ptr()] = state["paused"]
                    held.append(storage)  # so that no later tensor gets its address
            return output

    @contextlib.contextmanager
    def pause():
        state["paused"] = True
        try:
            yield
        finally:
            state["paused"] = False

    handles = [
        network.register_forward_pre_hook(lambda *_: state.update(inside=True)),
        network.register_forward_hook(lambda *_: state.update(inside=False)),
    ]
    try:
        with Track():
            yield pause, allocated
    finally:
        for handle in handles:
            handle.remove()


def kept_by(path):
    """The tensors that a side path holds from call to call."""
    prepared = [
        part for layer in path._layers.values() for factors in layer.prepared.values() for part in factors or ()
    ]
    return [*prepared, *path._call._row_gates.values()]


@pytest.mark.parametrize("method", ["blend", "soup", "stochastic"])
def test_nothing_that_is_kept_is_allocated_inside_a_call(sd3, method, monkeypatch):
    """Factors and gates are made before the network's call, and hooks allocate only while the host's compiler is paused."""
    import diffusion_blend.nodes.engine.gated as gated

    paths, kept = [], []
    with recording(sd3.model.model.diffusion_model) as (pause, allocated):
        monkeypatch.setattr(gated, "pause_of_host", lambda: pause)
        monkeypatch.setattr(gated, "SidePath", lambda *args: paths.append(SidePath(*args)) or paths[-1])
        network = sd3.model.model.diffusion_model
        # The addresses of one call only, because later calls use freed memory again.
        begin = network.register_forward_pre_hook(lambda *_: allocated.clear())
        end = network.register_forward_hook(
            lambda *_: kept.extend(
                (part, part.untyped_storage().data_ptr() in allocated) for part in kept_by(paths[-1])
            )
        )
        sd3.sample(blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5), method))
        begin.remove()
        end.remove()
    assert kept
    assert any(allocated.values())  # the hooks do run in the paused context
    assert not [part for part, inside in kept if inside]
