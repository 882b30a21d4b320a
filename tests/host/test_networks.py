"""Tiny networks of the host's own classes under a blend; all of them by ``-m full``.

A network may reorder its rows, concatenate copies, hold a cache, or prepare the text by layers of its own.
"""

import comfy_architectures
import comfy_network_runs
import comfy_networks
import pytest

BY_NAME = {each.name: each for each in (*comfy_networks.ARCHITECTURES, *comfy_architectures.FURTHER)}
DEFAULT = ["Hunyuan3D 2.1", "Qwen-Image-Edit 2511", "PixArt", "LTX-AV with texts to prepare"]


def check(name, folder):
    architecture = BY_NAME[name]
    if not architecture.exists():
        pytest.skip(f"this host has no {name}")
    found = comfy_network_runs.outcomes(architecture, folder)
    rows = found.pop("rows in one call")
    assert set(found.values()) == {comfy_network_runs.RIGHT}, found
    return rows


@pytest.mark.parametrize("name", DEFAULT)
def test_some_networks(name, loras_folder):
    check(name, loras_folder)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in DEFAULT])
def test_the_other_networks(name, loras_folder):
    check(name, loras_folder)
