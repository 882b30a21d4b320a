"""Lists in the graph, and texts that the artist sees: names from files, errors, sheets."""

import math

import comfy_models
import pytest
import torch
from comfy_adapters import write
from comfy_world import blend_model, load_loras, preference
from diffusion_blend.blending.changing_preference import PreferenceSchedule
from diffusion_blend.blending.preference import Preference
from diffusion_blend.nodes.adapters.names import LONGEST, cleaned_name
from diffusion_blend.nodes.engine.graph_lists import lists_beside
from diffusion_blend.nodes.engine.score_table import Scores
from diffusion_blend.nodes.engine.sweep_points import line
from diffusion_blend.nodes.figures.sheet import MOST_PIXELS
from diffusion_blend.nodes.grid import PreferenceGrid
from diffusion_blend.nodes.inputs import PreferenceWeights
from diffusion_blend.nodes.regional import RegionalPreferenceNode
from diffusion_blend.nodes.samplers import BlendedKSampler, KLScaleSampler, MSDDASampler
from diffusion_blend.nodes.schedule import PreferenceScheduleNode
from diffusion_blend.nodes.sweep import PreferenceSweep, check_other_lists


class GivesAList:
    OUTPUT_IS_LIST = (True,)


class Plain:
    OUTPUT_IS_LIST = (False,)


class Collects:
    INPUT_IS_LIST, OUTPUT_IS_LIST = True, (False,)


CLASSES = {"PreferenceSweep": GivesAList, "Prompts": GivesAList, "Encode": Plain, "Blend": Plain, "Grid": Collects}


def graph(**nodes):
    """Make a graph of ``name=(class, inputs)``. An input that names a node is a link to its first output."""
    return {
        name: {
            "class_type": kind,
            "inputs": {key: [value, 0] if value in nodes else value for key, value in inputs.items()},
        }
        for name, (kind, inputs) in nodes.items()
    }


def sweep(points, kind="line"):
    return ("PreferenceSweep", {"kind": kind, "points": points})


def test_the_lists_that_meet_a_sweep_are_found():
    beside = graph(
        s=sweep(5),
        p=("Prompts", {}),
        e=("Encode", {"text": "p"}),
        b=("Blend", {"w": "s", "c": "e"}),
        g=("Grid", {"i": "b"}),
    )
    assert lists_beside(beside, "s", CLASSES) == ["p"]
    alone = graph(s=sweep(5), e=("Encode", {}), b=("Blend", {"w": "s", "c": "e"}), g=("Grid", {"i": "b", "w": "s"}))
    assert lists_beside(alone, "s", CLASSES) == []
    # The outputs of a collecting node are no list beside the sweep. A list that only the grid reads is none either.
    apart = graph(s=sweep(5), p=("Prompts", {}), b=("Blend", {"w": "s"}), g=("Grid", {"i": "b", "text": "p"}))
    assert lists_beside(apart, "s", CLASSES) == []


class Hidden:
    def __init__(self, prompt, unique_id):
        self.prompt, self.unique_id = prompt, unique_id


def registered(monkeypatch):
    import nodes

    for name, node in CLASSES.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)


def test_two_sweeps_of_unequal_length_are_refused_before_anything_runs(monkeypatch):
    registered(monkeypatch)
    both = graph(**{"1": sweep(5), "2": sweep(7), "3": ("Blend", {"a": "1", "b": "2"})})
    with pytest.raises(ValueError, match="Preference Sweep #2 gives 7 preferences and #1 gives 5"):
        check_other_lists(Hidden(both, "1"), 5)
    both["2"]["inputs"]["points"] = 5
    check_other_lists(Hidden(both, "1"), 5)
    check_other_lists(Hidden(None, None), 5)


def test_another_list_is_named_before_anything_runs(monkeypatch, caplog):
    caplog.set_level("INFO")
    registered(monkeypatch)
    beside = graph(**{"1": sweep(5), "2": ("Prompts", {}), "3": ("Blend", {"a": "1", "b": "2"})})
    check_other_lists(Hidden(beside, "1"), 5)
    assert "Prompts (#2) also gives a list, which is paired with the 5 preferences" in caplog.text


def test_the_sweep_reads_its_graph():
    hidden = {member.name for member in PreferenceSweep.define_schema().hidden}
    assert hidden == {"prompt", "unique_id"}


def sheet(count, points, prompts=None, size=64, **more):
    images = [torch.full((1, 32, 32, 3), 0.2 + 0.05 * number) for number in range(count)]
    wanted = line(Preference((1, 0)), Preference((0, 1)), points, 2)
    return PreferenceGrid.execute(images, wanted, [size], [""], [""], prompts=prompts, **more).args[0]


def test_a_list_longer_than_the_sweep_still_makes_a_sheet(caplog):
    """All runs have been computed, and the host repeated the last preference."""
    caplog.set_level("INFO")
    longer = sheet(5, 3)
    assert longer.shape[2] > sheet(3, 3).shape[2]
    assert "5 batches of images for 3 preferences: another list in the graph is longer than the sweep" in caplog.text
    with pytest.raises(ValueError, match="2 batches of images for 3 preferences"):
        sheet(2, 3)


def test_prompts_that_differ_are_written_below_the_images():
    plain, same, differ = (sheet(3, 3, prompts) for prompts in (None, ["a cat"] * 3, ["a cat", "a dog"]))
    assert torch.equal(plain, same)
    assert differ.shape[1] > plain.shape[1]


def test_a_sheet_is_bounded_in_pixels(caplog):
    caplog.set_level("INFO")
    large = sheet(400, 400, size=1024)
    assert large.shape[1] * large.shape[2] <= MOST_PIXELS
    assert large.shape[1] * large.shape[2] > MOST_PIXELS / 3
    assert "400 images of 1024 pixels make a sheet that is too large to save" in caplog.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines\r\n\tand more", "two lines and more"),
        ("abc\u202egnp.exe", "abcgnp.exe"),
        ("nul\x00 and \x07 bell\x1b[31m", "nul and  bell[31m"),
        ("\u200b\u200e", ""),
        ("x" * 5000, "x" * (LONGEST - 3) + "..."),
        ("Sch\u00f6nheit \u7f8e", "Sch\u00f6nheit \u7f8e"),
    ],
)
def test_names_are_one_line_of_visible_characters(name, shown):
    assert cleaned_name(name) == shown


def test_names_are_cleaned_where_files_are_read(sd3, loras_folder):
    for number, name in enumerate(("two\nlines \u202eback", "\x00\u200b", "n" * 5000)):
        write(loras_folder, f"named-{number}", sd3.adapters[0], {"diffusion_blend.reward": name})
    names = load_loras([f"named-{number}.safetensors" for number in range(3)]).names
    assert names == ["two lines back", "named-1", "n" * 57 + "..."]


def test_every_object_on_a_link_has_a_short_repr(sd3):
    """The host prints a failed node's inputs into the log and the error dialog."""
    loras = sd3.loras(2)
    mask = torch.rand(4, 64, 64)
    regional = RegionalPreferenceNode.execute(preference(1, 0), preference(0, 1), mask=mask, feather=4).args[0]
    objects = [loras, loras.adapters[0], preference(1, 2), regional, PreferenceSchedule(preference(1, 0), regional)]
    objects += [Scores(("a",), (tuple(map(float, range(1000))),)), regional.coefficients(loras.names)]
    objects += blend_model(sd3.model, loras, regional).get_wrappers("outer_sample", "diffusion_blend")
    for each in objects:
        assert len(repr(each)) < 1000, type(each)


def nan_cases(sd3):
    loras, wanted, inputs = sd3.loras(2), preference(1, 1), sd3.node_sampling(latent=comfy_models.latent("sd3", 1))
    without = {name: value for name, value in inputs.items() if name != "sampler_name"}
    weights = dict.fromkeys(("weight_1", "weight_2", "weight_3", "weight_4", "kl_scale"), 0.5)
    line_of = {"kind": "kl scales", "points": 3, "divisions": 2, "preference_start": wanted}
    scales = {"kl_scale_from": 0.0, "kl_scale_to": 1.0}
    etas = {f"eta_{number}": 1.0 for number in range(1, 5)}
    yield from ((PreferenceWeights, weights, name) for name in weights)
    yield from ((PreferenceSweep, line_of | scales, name) for name in scales)
    moved = {"preference_start": wanted, "preference_end": wanted, "curve": "linear"}
    percents = {"start_percent": 0.0, "end_percent": 1.0}
    yield from ((PreferenceScheduleNode, moved | percents, name) for name in percents)
    blended = {"model": sd3.model, "reward_loras": loras, "preference": wanted}
    yield from ((BlendedKSampler, blended | inputs, name) for name in ("cfg", "denoise"))
    yield KLScaleSampler, blended | inputs | {"kl_scale": 1.0}, "kl_scale"
    yield from ((MSDDASampler, blended | without | etas | {"renormalise": False}, name) for name in ("eta_1", "cfg"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_by_the_inputs_name(sd3, value):
    for node, inputs, name in nan_cases(sd3):
        with pytest.raises(ValueError, match=rf"^{name} is {value}\b"):
            node.execute(**inputs | {name: value})
