"""Files and values from other people: they run no code in the host, and no file outside the host's folders is read."""

import os
import pickle
import sys
import zipfile

import comfy_adapters
import pytest
import torch
from comfy_adapters import kohya, write
from comfy_world import load_loras
from diffusion_blend.nodes.adapters.files import read_lora
from diffusion_blend.nodes.inputs import LoadRewardLoRAs
from diffusion_blend.nodes.scores import LoadRewardModel

READING = {"watched": False, "opened": [], "unpickled": 0}


def _watch(event, arguments):
    if READING["watched"]:
        if event == "open":
            READING["opened"].append(str(arguments[0]))
        READING["unpickled"] += event == "pickle.find_class"


sys.addaudithook(_watch)


@pytest.fixture
def watched():
    READING.update(watched=True, opened=[], unpickled=0)
    yield READING
    READING["watched"] = False


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def trapped_files(folder, sprung):
    """Files in which a pickle can hide."""
    tensors = kohya("sd3", 1) | {"trap": Trap(sprung)}
    for name in (
        "trap.ckpt",
        "trap.pt",
        "trap.pth",
        "trap.bin",
        "trap.SAFETENSORS.pt",
        "trap.safetensors",
        "zip.safetensors",
    ):
        torch.save(tensors, folder / name)
    (folder / "plain.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    torch.save(tensors, folder / "old.safetensors", _use_new_zipfile_serialization=False)
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_pickle_is_refused_before_a_byte_is_unpickled(tmp_path, watched):
    sprung = tmp_path / "sprung"
    names = trapped_files(tmp_path, sprung)
    assert len(names) == 9 and zipfile.is_zipfile(tmp_path / "zip.safetensors")
    for name in names:
        watched.update(opened=[], unpickled=0)
        with pytest.raises(ValueError, match=f"{name} (is not a .safetensors file|cannot be read as safetensors)"):
            read_lora(str(tmp_path / name), 1.0)
        assert watched["unpickled"] == 0 and not sprung.exists()
        if not name.endswith(".safetensors"):
            assert [path for path in watched["opened"] if name in path] == [], "refused by its name, not opened"


def test_the_trap_would_spring(tmp_path, watched):
    trapped_files(tmp_path, tmp_path / "sprung")
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").is_dir() and watched["unpickled"]


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "{}/outside.safetensors", "x/../../outside.safetensors", "./../outside.safetensors"],
)
def test_a_linked_name_cannot_leave_the_loras_folder(loras_folder, watched, name):
    """The host checks chosen values but not linked ones, so the node asks the host for the file's place."""
    write(loras_folder.parent, "outside", kohya("sd3", 1))
    name = name.format(loras_folder.parent)
    with pytest.raises(FileNotFoundError):
        load_loras([name])
    with pytest.raises(FileNotFoundError):
        LoadRewardLoRAs.fingerprint_inputs(lora_1=name)
    assert [path for path in watched["opened"] if "outside.safetensors" in path] == []


@pytest.mark.parametrize("reward", ["os:getcwd", "comfy_world:preference", "", "miniature.os"])
def test_a_linked_reward_cannot_name_a_function(reward, watched):
    modules = set(sys.modules)
    with pytest.raises(ValueError, match="There is no reward"):
        LoadRewardModel.execute(reward, "automatic", False)
    loaded = {name for name in set(sys.modules) - modules if name.startswith("diffusion_blend.")}
    assert not {name for name in loaded if "training" in name or name.startswith("diffusion_blend.rewards.")}


@pytest.mark.parametrize("folder", ["..", "../loras", "/", "."])
def test_a_linked_folder_cannot_leave_the_models(folder):
    with pytest.raises(ValueError, match="There is no folder"):
        LoadRewardModel.execute("aesthetic", folder, False)


def test_metadata_of_ten_megabytes_are_read_and_no_more(sd3, loras_folder):
    big = {f"note {i}": "x" * 1_000_000 for i in range(10)}
    write(loras_folder, "wordy", kohya("sd3", 1), big)
    (adapter,) = load_loras(["wordy.safetensors"])
    assert adapter.name == "wordy"
    assert comfy_adapters.hooks_on(sd3.model) == 0
