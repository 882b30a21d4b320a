"""Artists find the nodes by the words that they know from other extensions."""

from __future__ import annotations

import pytest
from comfy_server import ComfyServer

WORDS = {
    "lora stack": {"LoadRewardLoRAs"},
    "multi lora": {"LoadRewardLoRAs", "BlendModel", "BlendedKSampler"},
    "merge lora": {"BlendModel", "BlendedKSampler"},
    "mix lora": {"PreferenceWeights", "BlendModel", "BlendedKSampler"},
    "style mix": {"PreferenceWeights", "BlendedKSampler"},
    "xy plot": {"PreferenceSweep", "PreferenceGrid"},
    "aesthetic score": {"LoadRewardModel", "ScoreImages", "KeepBest"},
    "prompt schedule lora": {"PreferenceSchedule"},
    "regional lora": {"RegionalPreference"},
}


@pytest.mark.parametrize("words", WORDS)
def test_found_by(server: ComfyServer, words: str) -> None:
    """As a search that looks for the words in the node's name and aliases."""
    info = server.get_json("/object_info")
    found = {
        name
        for name in info
        if any(
            words in text.lower()
            for text in [info[name]["display_name"] or "", *(info[name].get("search_aliases") or [])]
        )
    }
    assert found >= WORDS[words]
