"""The subgraph blueprint of ``subgraphs/``: loader, preference and sampler as one node of the artist's own graphs."""

from __future__ import annotations

from workflow_parts import Template, node

NAME = "Blend of LoRAs (Diffusion Blend)"
DESCRIPTION = "KSampler that blends up to three LoRAs at every step, with a pad for how much of each."
ALIASES = ["diffusion blend", "mix loras", "multi lora", "lora pad", "style mix"]
INPUTS = (
    ("sampler", ("model", "positive", "negative", "latent_image")),
    ("loras", ("lora_1", "lora_2", "lora_3")),
    ("preference", ("weight_1", "weight_2", "weight_3", "kl_scale")),
    ("sampler", ("seed", "steps", "cfg")),
)
"""The inputs of the one node, by the node inside."""

GRAPH: Template = {
    "id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2be0",
    "nodes": {
        "loras": node("LoadRewardLoRAs"),
        "preference": node("PreferenceWeights", links={"reward_loras": ("loras", "reward_loras")}),
        "sampler": node(
            "BlendedKSampler",
            links={"reward_loras": ("loras", "reward_loras"), "preference": ("preference", "preference")},
        ),
    },
    "columns": [(350, ["loras"]), (300, ["preference"]), (300, ["sampler"])],
}

WRAP = """([ids, name, inputs]) => {
    const nodes = Object.fromEntries(Object.entries(ids).map(([key, id]) => [key, app.graph.getNodeById(id)]))
    const keys = Object.fromEntries(Object.entries(nodes).map(([key, node]) => [key, node.type]))
    const { subgraph, node: host } = app.graph.convertToSubgraph(new Set(Object.values(nodes)))
    subgraph.name = host.title = name
    for (const [key, names] of inputs) {
        const inner = subgraph.nodes.find((node) => node.type === keys[key])
        for (const wanted of names) {
            const slot = inner.inputs.find((input) => input.name === wanted)
            if (!subgraph.inputs.some((input) => input.name === wanted)) {
                subgraph.addInput(wanted, String(slot.type)).connect(slot, inner)
            }
        }
    }
    const sampler = subgraph.nodes.find((node) => node.type === keys.sampler)
    if (!subgraph.outputs.length) subgraph.addOutput('latent', 'LATENT').connect(sampler.outputs[0], sampler)
    host.pos = [0, 0]
}"""
