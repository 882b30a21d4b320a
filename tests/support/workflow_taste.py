"""A graph on the miniature that finds a preference by votes: of the browser tests, and of a template."""

from __future__ import annotations

from workflow_parts import IDS, OURS, Template, common, node, on_miniature, preference, sampler


def find_my_taste_no_downloads() -> Template:
    text = (
        "## Find my taste: no downloads\n\n"
        "Nobody knows the weights they want, but everybody can say which of two pictures is better.\n\n"
        "1. Press **Run** (top right): two sheets of four small pictures appear on the right.\n"
        "2. Click the better side. Keys: **1**, **2**, **0** equal, **x** both bad, **Backspace** undo. The next pair is made by "
        "itself.\n"
        "3. After about ten votes press **Take it**: the preference that you like is in **Preference Weights**. The picture "
        "below shows what the votes say, and where they say little.\n"
        "4. **Again from here** looks further only near that preference.\n\n"
        "The votes are the text in **Preference Duel**: they are saved with the workflow. Clear it to begin anew.\n\n"
        "For your own model: replace **Load Miniature**, and choose your LoRAs in **Load Reward LoRAs**."
    )
    nodes = common(text) | {"sampler": sampler("BlendedKSampler", steps=12, cfg=2.0)}
    nodes["decode"] = node("VAEDecode", links={"samples": ("sampler", "latent"), "vae": ("checkpoint", "VAE")})
    nodes = on_miniature(nodes)
    nodes["checkpoint"]["widgets"] = {"batch_size": 4}
    nodes["preference"] = preference((0.34, 0.33, 0.33))
    nodes["duel"] = node(
        "PreferenceDuel", {"first_seed": 7}, {"reward_loras": ("loras", "reward_loras")}, 330, color=OURS
    )
    nodes["sampler"]["links"] |= {"preference": ("duel", "preferences"), "seed": ("duel", "seed")}
    links = {"images": ("decode", "IMAGE"), "duel": ("duel", "duel")}
    nodes["view"] = node("PreferenceDuelView", {}, links, 620, color=OURS)
    columns = [
        (270, ["note"]),
        (300, ["checkpoint", "loras", "preference"]),
        (270, ["positive", "negative", "duel"]),
        (250, ["sampler", "decode"]),
        (530, ["view"]),
    ]
    app = {"inputs": [("positive", "text"), ("view", "preference_duel")], "outputs": ["view"], "opens": False}
    return {"id": IDS.format(11), "nodes": nodes, "columns": columns, "app": app}
