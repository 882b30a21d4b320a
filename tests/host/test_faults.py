"""However and wherever a sampling run ends, the MODEL, its clones and other graphs stay bit-identical, and nothing is left."""

import gc
import sys
import threading
from collections import Counter

import comfy.model_management as management
import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on, kohya, write
from comfy_world import blend_model, load_loras, preference
from diffusion_blend.blending.adapters import AdapterBank
from diffusion_blend.blending.side_path import SidePath
from diffusion_blend.nodes.engine.rows import RowEvaluator
from diffusion_blend.nodes.engine.run import BlendRun
from diffusion_blend.nodes.samplers import MSDDASampler

# These lines are ours and do not depend on the host's version; test_nothing_left runs on every host.
pytestmark = pytest.mark.newest

STEPS = 2


class Fault(Exception):
    pass


class Death(BaseException):
    """Ends a thread from outside at any line. It is no Exception, so that no handler catches it."""


FAULTS = {
    "error": Fault,
    "interrupt": management.InterruptProcessingException,
    "out of memory": torch.cuda.OutOfMemoryError,
    "death": Death,
}


def alive(*kinds):
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)


def in_a_thread(work):
    """Run a function in a thread of its own; returns the error that ended the thread."""
    ends = []

    def run():
        try:
            with torch.inference_mode():
                work()
        except BaseException as end:  # noqa: BLE001 - it is what ended the thread, and is looked at
            ends.append(type(end))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return ends


@pytest.fixture(scope="module")
def graphs(worlds):
    """One MODEL, and the MODELs that other graphs make of it with their images: a clone, two blends, MSDDA."""

    class Graphs:
        def __init__(self, world):
            self.world = world
            self.model = world.model
            loras = world.loras(2)
            self.blend = blend_model(self.model, loras, preference(0.3, 0.7, kl_scale=1.2))
            self.others = {
                "the model": self.model,
                "a clone": self.model.clone(),
                "the blend": self.blend,
                "another preference": blend_model(self.model, loras, preference(0.9, 0.1)),
            }
            self.images = self.sample_all()
            self.state = self.counted()
            assert self.state[0] == 0

        def sample(self, model):
            return self.world.sample(model, latent=comfy_models.latent("sd3", 1), cfg=1.0, steps=STEPS)

        def sample_all(self):
            return {name: self.sample(model) for name, model in self.others.items()}

        def counted(self):
            wrappers = [
                sum(len(each) for kinds in model.wrappers.values() for each in kinds.values())
                for model in self.others.values()
            ]
            callbacks = [sum(map(len, model.callbacks.values())) for model in self.others.values()]
            options = [set(model.model_options["transformer_options"]) for model in self.others.values()]
            return hooks_on(self.model), wrappers, callbacks, options

        def check(self):
            assert self.counted() == self.state
            assert alive(BlendRun, SidePath) == Counter()
            again = self.sample_all()
            assert all(torch.equal(again[name], image) for name, image in self.images.items())

    return Graphs(worlds("sd3"))


class RaiseAt:
    """A hook on the network that raises at a chosen call."""

    def __init__(self, model, call, fault):
        self.calls, self.call, self.fault = 0, call, fault
        self.handle = model.model.diffusion_model.register_forward_hook(self)

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.call:
            raise self.fault("injected")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


OFTEN = ("death",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.full) for name in FAULTS]
)
def test_a_fault_at_every_step_and_row_leaves_everything_as_it_was(graphs, name):
    for call in range(1, 2 * STEPS + 1):  # two rows a step
        with RaiseAt(graphs.model, call, FAULTS[name]):
            assert in_a_thread(lambda: graphs.sample(graphs.blend)) == [FAULTS[name]]
        assert graphs.counted() == graphs.state
    graphs.check()


@pytest.mark.full
def test_a_fault_in_msdda_leaves_everything_as_it_was(graphs):
    world = graphs.world
    inputs = world.node_sampling(latent=comfy_models.latent("sd3", 1), cfg=1.0, steps=STEPS)
    inputs.pop("sampler_name")
    etas = {f"eta_{i}": 0.5 for i in range(1, 5)}
    loras = world.loras(2)

    def sample():
        node = MSDDASampler.execute(graphs.model, loras, preference(0.3, 0.7), **etas, renormalise=False, **inputs)
        return node.args[0]["samples"]

    first = sample()
    for call in range(1, 2 * STEPS + 1):
        with RaiseAt(graphs.model, call, Death):
            assert in_a_thread(sample) == [Death]
        assert graphs.counted() == graphs.state
    assert torch.equal(sample(), first)
    graphs.check()


@pytest.fixture(scope="module")
def small(worlds, loras_folder):
    """Make a blend of one adapter on two layers, because few lines run when it is installed and removed."""
    layers = ("joint_blocks.0.x_block.attn.proj", "joint_blocks.1.x_block.attn.qkv")
    write(loras_folder, "two-layers", kohya("sd3", 4, endings=layers))
    return blend_model(worlds("sd3").model, load_loras(["two-layers.safetensors"]), preference(1.0))


class DieAtLine:
    """Ends its thread before the n-th line of some functions."""

    def __init__(self, line, codes):
        self.line, self.codes, self.lines = line, codes, 0

    def __call__(self, frame, event, _):
        if frame.f_code not in self.codes:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                raise Death
        return self


DIES_IN = {
    "installation": ((SidePath, "install"), (BlendRun, "_gated")),
    "removal": ((SidePath, "remove"), (BlendRun, "remove"), (BlendRun, "__exit__")),
    "a call": ((BlendRun, "sample"), (BlendRun, "apply_model"), (RowEvaluator, "evaluate")),
}


@pytest.mark.parametrize("place", ["installation", "removal", pytest.param("a call", marks=pytest.mark.full)])
def test_death_at_any_line_takes_every_hook_off(graphs, small, place):
    """The thread ends before each line in turn, until a run gets through."""
    codes = {getattr(owner, name).__code__ for owner, name in DIES_IN[place]}
    latent = {"latent": comfy_models.latent("sd3", 1, size=2), "cfg": 1.0, "steps": 1}
    for line in range(1, 200):
        death = DieAtLine(line, codes)

        def sample(trace=death):
            sys.settrace(trace)
            try:
                graphs.world.sample(small, **latent)
            finally:
                sys.settrace(None)

        ends = in_a_thread(sample)
        assert hooks_on(small) == 0, f"{place}: hooks are left after a death before line {line}"
        if not ends:
            break
        assert ends == [Death]
    assert not ends
    assert line > 8  # many threads did end
    graphs.check()


def test_two_queued_prompts_of_which_the_first_fails(graphs):
    """A run after a failed run gives the same image as alone."""
    with RaiseAt(graphs.model, 4, Fault):
        assert in_a_thread(lambda: graphs.sample(graphs.blend)) == [Fault]
    name = "another preference"
    assert torch.equal(graphs.sample(graphs.others[name]), graphs.images[name])


def pieces(graphs, model):
    """Do a run in as many sampler nodes as it has steps, one after the other."""
    import comfy.sample

    run = graphs.world.sampling(latent=comfy_models.latent("sd3", 1))
    latent = run["latent"]["samples"]
    noise = comfy.sample.prepare_noise(latent, run["seed"])
    for start in range(STEPS):
        arguments = (noise, STEPS, 1.0, "euler", "normal", run["positive"], run["negative"], latent)
        span = {"start_step": start, "last_step": start + 1, "force_full_denoise": start == STEPS - 1}
        latent = comfy.sample.sample(model, *arguments, **span, disable_noise=start > 0, seed=run["seed"])
        noise = torch.zeros_like(noise)
        yield latent


def test_branches_of_one_model_alternating_step_by_step(graphs):
    """Other branches of the graph that run in between change neither the blends nor the plain model."""
    models = [graphs.others[name] for name in ("the blend", "the model", "another preference")]
    alone = [list(pieces(graphs, model)) for model in models]
    together = zip(*(pieces(graphs, model) for model in models), strict=True)
    for step, latents in enumerate(together):
        assert all(torch.equal(latent, steps[step]) for latent, steps in zip(latents, alone, strict=True))
    assert len({float(steps[-1].sum()) for steps in alone}) == 3
    graphs.check()


def test_adapters_are_let_go_with_their_last_user(graphs):
    def banks():
        return alive(AdapterBank)[AdapterBank.__name__]

    def fail():
        """Fail in a frame of its own, so that nothing stays when it returns."""
        blended = blend_model(graphs.model, graphs.world.loras(3), preference(1, 1, 1))
        with RaiseAt(graphs.model, 2, Death):
            assert in_a_thread(lambda: graphs.sample(blended)) == [Death]
        assert banks() == before + 1

    before = banks()
    fail()
    assert banks() == before
