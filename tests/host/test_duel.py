"""The node Preference Duel in the host: its pair follows the votes, both pictures share the noise, and mistakes are named."""

from __future__ import annotations

import pytest
import torch
from diffusion_blend.blending.changing_preference import PreferenceSchedule
from diffusion_blend.blending.preference import Preference
from diffusion_blend.nodes.adapters.files import RewardLoRA, RewardLoRAs
from diffusion_blend.nodes.duel import PreferenceDuel, PreferenceDuelView
from diffusion_blend.nodes.engine.duels import make_duel, save_pictures
from diffusion_blend.preference_learning.votes import Option
from PIL import Image

NAMES = ["aesthetic", "faithful", "vivid", "soft", "bright"]


def adapters(count=3):
    return RewardLoRAs(tuple(RewardLoRA(name, name, {}, None, 1.0) for name in NAMES[:count]))


def duel(votes="", seed_mode="same noise", start=None, low=0.5, high=1.5, loras=None):
    pair, seed, best, made = PreferenceDuel.execute(
        adapters() if loras is None else loras, votes, low, high, seed_mode, 7, start
    ).args
    return pair, seed, best, made


def text(preference):
    return Option(preference.weights, preference.kl_scale).text()


def test_typed_votes_and_written_votes_lead_to_the_same_pair():
    """The view writes the two options; who types writes 1, 2, 0 or x. Both play the same search."""
    written, typed = "", ""
    for key, outcome in zip("12x01", "><x=>", strict=True):
        _, _, _, made = duel(written)
        assert duel(typed)[3].texts == made.texts
        written += f"{made.texts[0]} {outcome} {made.texts[1]}\n"
        typed += f" {key}"
    assert duel(written)[0] == duel(typed)[0]
    assert duel(written)[2] == duel(typed)[2]
    assert duel(written)[3].count == 5


def test_the_view_knows_the_files_of_the_pair():
    """With them it finds the LoRAs again when their rows have moved."""
    loras = adapters(3)
    assert duel(loras=loras)[3].described()["files"] == [adapter.file for adapter in loras]


def test_the_best_follows_the_votes():
    """A person who wants the second adapter and a large KL scale gets them."""
    votes = ""
    for _ in range(10):
        pair, _, best, made = duel(votes)
        left, right = (preference.weights[1] + 0.3 * preference.kl_scale for preference in pair)
        votes += f"{made.texts[0]} {'>' if left > right else '<'} {made.texts[1]}\n"
    best = duel(votes)[2]
    assert best.weights[1] > 0.9 and best.kl_scale > 1.3


def test_same_noise_keeps_the_seed_and_new_noise_changes_it_with_every_vote():
    assert [duel("1 " * count)[1] for count in range(3)] == [7, 7, 7]
    assert [duel("1 " * count, "new noise")[1] for count in range(3)] == [7, 8, 9]


def test_a_search_begins_at_the_start():
    start = Preference((0.2, 0.6, 0.2), 1.2)
    pair, _, best, _ = duel(start=start)
    assert pair[0] == best
    assert best.weights == pytest.approx(start.weights) and best.kl_scale == 1.2


def test_again_from_here_halves_the_region_each_time():
    _, _, best, made = duel("1 2")
    assert made.narrow == f"around {text(best)} within 0.5"
    pair, _, _, again = duel(f"1 2\n{made.narrow}")
    for preference in pair:
        assert max(abs(a - b) for a, b in zip(preference.weights, best.weights, strict=True)) <= 0.51
    assert again.narrow.endswith("within 0.25")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loras": adapters(1)}, "at least 2 adapters and got 1"),
        ({"low": 2.0, "high": 1.0}, "kl_scale_from is 2.0 and kl_scale_to is 1.0"),
        ({"low": float("nan")}, "must be a finite number"),
        ({"votes": "1 0 > 0 1"}, "2 weights for 3 adapters"),
        ({"votes": "3"}, "Line 1 of the votes is '3'"),
        ({"start": PreferenceSchedule(Preference((1, 0, 0)), Preference((0, 1, 0)))}, "plain Preference Weights"),
        ({"start": Preference((0, 0, 0))}, "All weights of start are 0"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        duel(**settings)


def test_the_view_refuses_more_or_fewer_than_two_pictures():
    made = make_duel(NAMES, "", (0.5, 1.5), None)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"2 pictures and got {count}"):
            PreferenceDuelView.execute([torch.zeros(1, 8, 8, 3)] * count, [made], [False])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_what_was_learned_is_a_shading_between_0_and_1_over_the_whole_shape(count):
    learned = make_duel(NAMES[:count], "1 2 1", (0.5, 1.5), None).learned
    assert len(learned["points"]) == {2: 25, 3: 91, 5: 97}[count]
    for row in learned["points"]:
        assert sum(row[:count]) == pytest.approx(1, abs=0.01)
        assert all(0 <= value <= 1 for value in row)
    assert max(row[count] for row in learned["points"]) == 1
    for (low, high), weight in zip(learned["spread"], learned["best"]["weights"], strict=False):
        assert 0 <= low <= high <= 1 and 0 <= weight <= 1


def test_kept_pictures_say_which_option_they_show(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    save_pictures(torch.full((2, 8, 6, 3), 0.5), "1 0 0 kl 1")
    save_pictures(torch.zeros(1, 8, 6, 3), "0 1 0 kl 1")
    found = {}
    for file in sorted((tmp_path / "diffusion_blend_taste").glob("*.png")):
        with Image.open(file) as picture:
            found.setdefault(picture.text["diffusion_blend_option"], []).append(
                (picture.size, picture.getpixel((0, 0)))
            )
    assert found == {"1 0 0 kl 1": [((6, 8), (128, 128, 128))] * 2, "0 1 0 kl 1": [((6, 8), (0, 0, 0))]}
