"""Every member that our protocols name exists in this version of ComfyUI."""

from __future__ import annotations

import inspect
import re

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import pytest
from diffusion_blend.nodes import host

CLASSES = {
    host.Network: comfy.model_base.BaseModel,
    host.Patcher: comfy.model_patcher.ModelPatcher,
    host.Executor: comfy.patcher_extension.WrapperExecutor,
    host.Sampler: comfy.samplers.KSAMPLER,
    host.Denoiser: comfy.samplers.KSamplerX0Inpaint,
}


def members(protocol):
    """Return the names of a protocol's methods and attributes."""
    methods = {name for name, value in vars(protocol).items() if inspect.isfunction(value) and name != "__init__"}
    own = {name for name in methods if not name.startswith("_") or name == "__call__"}
    return own | set(inspect.get_annotations(protocol))


def missing(protocol, cls):
    """Return the members that a class neither defines nor sets on itself."""
    source = "".join(inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("comfy"))
    return {
        name for name in members(protocol) if not hasattr(cls, name) and not re.search(rf"\bself\.{name}\b", source)
    }


@pytest.mark.parametrize("protocol", CLASSES, ids=lambda protocol: protocol.__name__)
def test_the_host_has_every_member(protocol):
    assert members(protocol)
    assert missing(protocol, CLASSES[protocol]) == set()


def test_a_missing_member_would_be_found():
    class Wanted:
        manual_cast_dtype: object
        manual_cast: object  # only the beginning of a name that is there
        not_there: object

        def neither(self):
            raise NotImplementedError

    assert missing(Wanted, comfy.model_base.BaseModel) == {"manual_cast", "not_there", "neither"}


def test_every_protocol_is_compared():
    assert set(CLASSES) == {value for value in vars(host).values() if getattr(value, "_is_protocol", False)} - {
        getattr(host, "Protocol")  # noqa: B009
    }
