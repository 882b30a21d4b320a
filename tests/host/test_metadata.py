"""Records of blends in saved images, with the host's own executor, cache and Save Image in this process."""

import json
import os
import uuid
from types import SimpleNamespace

import comfy_models
import execution
import folder_paths
import nodes as host_nodes
import pytest
import torch
from diffusion_blend.nodes.engine.metadata import KEY, MOST_RECORDS, BlendRecords
from diffusion_blend.nodes.inputs import LoadRewardLoRAs, PreferenceWeights
from diffusion_blend.nodes.samplers import BlendedKSampler
from PIL import Image


class Source:
    """Makes a checkpoint, texts and a latent for a graph."""

    world = None
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def give(self):
        world = type(self).world
        return world.model, world.positive, world.negative, comfy_models.latent(world.kind, 1)


class Picture:
    """Makes an image of a latent."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "show"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def show(self, samples):
        return (samples["samples"][:, :3].movedim(1, -1).clamp(0, 1),)


class Amount:
    """Returns another number at each call."""

    asked = 0
    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return float("nan")

    def give(self):
        type(self).asked += 1
        return (0.1 * type(self).asked,)


@pytest.fixture
def graph(sd3, tmp_path, monkeypatch):
    """A prompt around Blended KSampler. The host knows its nodes, and its images go into a folder of the test."""
    Source.world, Amount.asked = sd3, 0
    for name, node in (("Source", Source), ("Picture", Picture), ("Amount", Amount)):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, node)
    for node in (LoadRewardLoRAs, PreferenceWeights, BlendedKSampler):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    files = {f"lora_{i}": sd3.files[i - 1] if i <= 2 else "None" for i in range(1, 5)}
    weights = {"weight_1": 0.3, "weight_2": 0.7, "weight_3": 0.0, "weight_4": 0.0, "kl_scale": 1.0}
    sampling = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {name: ["source", i] for i, name in enumerate(("model", "positive", "negative", "latent_image"))}
    links |= {"reward_loras": ["loras", 0], "preference": ["preference", 0]}
    return {
        "source": {"class_type": "Source", "inputs": {}},
        "loras": {
            "class_type": "LoadRewardLoRAs",
            "inputs": files | {f"strength_{i}": 1.0 for i in range(1, 5)},
        },
        "preference": {"class_type": "PreferenceWeights", "inputs": weights},
        "sampler": {"class_type": "BlendedKSampler", "inputs": sampling | links},
        "picture": {"class_type": "Picture", "inputs": {"samples": ["sampler", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "first"}},
    }


class Host:
    """The host's executor with the server's part: first the prompt handlers, then the run. It reports the cached nodes."""

    def __init__(self):
        self.records = BlendRecords()
        sent = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *args: None)
        kind = execution.CacheType.CLASSIC
        limits = {"lru": 0, "ram": 0, "ram_inactive": 0}
        try:
            self.executor = execution.PromptExecutor(sent, cache_type=kind, cache_args=limits)
        except TypeError:  # 0.3.64 takes one number
            self.executor = execution.PromptExecutor(sent, cache_type=kind)

    def run(self, graph, **extra):
        request = self.records({"prompt": json.loads(json.dumps(graph)), "extra_data": {"extra_pnginfo": extra}})
        prompt_id = str(uuid.uuid4())
        with torch.inference_mode(False):
            self.executor.execute(request["prompt"], prompt_id, dict(request["extra_data"]), ["save"])
        assert self.executor.success, self.executor.status_messages
        (saved,) = self.executor.history_result["outputs"]["save"]["images"]
        cached = next(data["nodes"] for name, data in self.executor.status_messages if name == "execution_cached")
        with Image.open(f"{folder_paths.get_output_directory()}/{saved['filename']}") as image:
            return {name: json.loads(text) for name, text in image.text.items()}, cached


def test_the_hosts_save_image_writes_it_also_for_a_cached_latent(graph):
    host = Host()
    text, cached = host.run(graph, workflow={"nodes": []})
    (record,) = text[KEY]["sampler"]
    assert record["method"] == "blend"
    assert record["kl_scale"] == 1.0
    assert [adapter["weight"] for adapter in record["adapters"]] == [0.3, 0.7]
    assert [adapter["file"] for adapter in record["adapters"]] == [
        graph["loras"]["inputs"][f"lora_{i}"] for i in (1, 2)
    ]
    assert text["workflow"] == {"nodes": []}
    assert "sampler" not in cached
    graph["save"]["inputs"]["filename_prefix"] = "second"
    again, cached = host.run(graph)
    assert "sampler" in cached
    assert again[KEY] == text[KEY]


def test_a_weight_that_another_node_computes_is_the_one_that_was_used(graph):
    graph["amount"] = {"class_type": "Amount", "inputs": {}}
    graph["preference"]["inputs"]["weight_1"] = ["amount", 0]
    graph["preference"]["inputs"]["weight_2"] = 0.0
    graph["preference"]["inputs"]["kl_scale"] = ["amount", 0]
    host = Host()
    scales = [host.run(graph)[0][KEY]["sampler"] for _ in range(3)]
    assert [len(records) for records in scales] == [1, 1, 1]  # a run replaces what an earlier one recorded
    assert [records[0]["kl_scale"] for records in scales] == pytest.approx([0.1, 0.2, 0.3])


def test_a_lora_written_anew_is_another_blend(graph, loras_folder):
    from comfy_adapters import write

    world = Source.world
    write(loras_folder, "anew", world.adapters[0], {"diffusion_blend.reward": "before"})
    graph["loras"]["inputs"]["lora_1"] = "anew.safetensors"
    host = Host()
    names = []
    for name in ("before", "after"):
        path = loras_folder / "anew.safetensors"
        write(loras_folder, "anew", world.adapters[0], {"diffusion_blend.reward": name})
        os.utime(path, ns=(len(names) * 10**9,) * 2)
        (record,) = host.run(graph)[0][KEY]["sampler"]
        names.append(record["adapters"][0]["name"])
    assert names == ["before", "after"]


def test_the_records_are_bounded(graph):
    records = BlendRecords()
    for number in range(MOST_RECORDS + 50):
        graph["sampler"]["inputs"]["seed"] = number
        records({"prompt": graph})
    assert len(records._records) == MOST_RECORDS


@pytest.mark.parametrize("extra_data", [{}, {"extra_data": None}, {"extra_data": {"extra_pnginfo": None}}])
def test_a_request_without_metadata_gets_some(graph, extra_data):
    request = BlendRecords()({"prompt": graph} | extra_data)
    assert request["extra_data"]["extra_pnginfo"] == {KEY: {"sampler": []}}


def test_outside_a_prompt_nothing_is_recorded(sd3, monkeypatch):
    from comfy_world import preference

    extra = {}
    monkeypatch.setattr(BlendedKSampler, "hidden", SimpleNamespace(extra_pnginfo=extra))
    BlendedKSampler.execute(sd3.model, sd3.loras(1), preference(1.0), **sd3.node_sampling(steps=1))
    assert extra == {}
