"""The node Preference Sweep: a list of preferences; nodes after it run once for each."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..blending.preference import AnyPreference, Preference
from .adapters.files import RewardLoRAs
from .engine import sweep_points
from .engine.graph_lists import length_of_sweep, lists_beside
from .engine.notices import notify
from .schema import PreferenceType, check_finite, kl_scale_input, make_schema, reward_loras_input

KINDS = ("simplex", "line", "kl scales")


class PreferenceSweep(io.ComfyNode):
    """Preferences along a line, over the simplex, or over KL scales."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="PreferenceSweep",
            display_name="Preference Sweep",
            description="Many preferences at once: every node after this one runs once for each, with the same seed. Collect the images with Preference Grid.",
            search_aliases=[
                "sweep",
                "xy plot",
                "x/y plot",
                "compare loras",
                "lora strength test",
                "simplex",
                "diffusion blend",
            ],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip="simplex: every mixture of the adapters at even steps. line: from preference_start to preference_end. kl scales: one mixture at several distances from the base model.",
                ),
                io.Int.Input(
                    "points",
                    default=5,
                    min=2,
                    max=sweep_points.MOST_POINTS,
                    tooltip="How many preferences a line or a row of KL scales has, both ends included. A simplex goes by divisions.",
                ),
                io.Int.Input(
                    "divisions",
                    default=4,
                    min=1,
                    max=100,
                    tooltip="Simplex only: steps from one adapter to the next. 4 are 5 points for two adapters, 15 for three, 35 for four.",
                ),
                kl_scale_input("kl_scale_from", 0.0, "The first KL scale of a row of KL scales; 0 is the base model."),
                kl_scale_input(
                    "kl_scale_to", 2.0, "The last KL scale of a row of KL scales; 1 is the blend, 2 exaggerates."
                ),
                PreferenceType.Input(
                    "preference_start",
                    optional=True,
                    tooltip="Where a line starts. For kl scales: the mixture (without it, all adapters equally). For a simplex: only its KL scale counts.",
                ),
                PreferenceType.Input("preference_end", optional=True, tooltip="Where a line ends."),
                reward_loras_input(
                    optional=True,
                    tooltip="The adapters: a simplex needs to know how many; the others are checked against them.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                PreferenceType.Output(
                    display_name="preferences", is_output_list=True, tooltip="One preference a point, as a list."
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip='One short name a point, such as "w .50 .25 .25".',
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        kind: str,
        points: int,
        divisions: int,
        kl_scale_from: float,
        kl_scale_to: float,
        preference_start: AnyPreference | None = None,
        preference_end: AnyPreference | None = None,
        reward_loras: RewardLoRAs | None = None,
    ) -> io.NodeOutput:
        check_finite(kl_scale_from=kl_scale_from, kl_scale_to=kl_scale_to)
        if reward_loras is not None:
            preference_start, preference_end = (
                None if given is None else reward_loras.arrange(given) for given in (preference_start, preference_end)
            )
        if kind == "kl scales":
            preferences, names = _kl_scales(preference_start, reward_loras, kl_scale_from, kl_scale_to, points)
        else:
            start, end = _plain("preference_start", preference_start), _plain("preference_end", preference_end)
            if kind == "simplex":
                count = _adapters(reward_loras)
                preferences = sweep_points.simplex(count, divisions, 1.0 if start is None else start.kl_scale)
            else:
                count, preferences = _line(start, end, points, reward_loras)
            names = sweep_points.labels(preferences, count)
        if reward_loras is not None:
            for preference in preferences:  # raises what is wrong, here and not after the first image
                reward_loras.coefficients(preference)
        check_other_lists(cls.hidden, len(preferences))
        return io.NodeOutput(preferences, names)


def check_other_lists(hidden: Any, count: int) -> None:
    """Look for other lists beside the sweep's, before any image is made.

    Args:
        hidden: the node's hidden inputs, with the prompt and the node's id.
        count: the number of the sweep's preferences.

    Raises:
        ValueError: another sweep has another number of preferences.
    """
    graph, own = getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None)
    if not graph or str(own) not in graph:
        return
    unknown = []
    for node in lists_beside(graph, str(own)):
        other = length_of_sweep(graph[node]["inputs"]) if graph[node]["class_type"] == "PreferenceSweep" else None
        if other is None:
            unknown.append(f"{graph[node]['class_type']} (#{node})")
        elif other != count:
            longer, shorter = (node, own) if other > count else (own, node)
            raise ValueError(
                f"Preference Sweep #{longer} gives {max(other, count)} preferences and #{shorter} gives {min(other, count)}, and both "
                "lists meet in one node. They are paired item by item: give both the same number of points."
            )
    if unknown:
        notify(
            f"{', '.join(unknown)} also gives a list, which is paired with the {count} preferences item by item: the last item of "
            "the shorter list is repeated. For every preference with every item, queue the graph once for each item."
        )


def _adapters(loras: RewardLoRAs | None) -> int:
    if loras is None:
        raise ValueError("A simplex sweep needs to know the adapters: connect reward_loras.")
    return len(loras.names)


def _line(
    start: Preference | None, end: Preference | None, points: int, loras: RewardLoRAs | None
) -> tuple[int, list[Preference]]:
    """The number of adapters, and the preferences between the two."""
    missing = [name for name, value in (("preference_start", start), ("preference_end", end)) if value is None]
    if start is None or end is None:
        raise ValueError(
            f"A line goes from one preference to another: connect {' and '.join(missing)} (Preference Weights). "
            "For the line between two adapters, choose the kind simplex."
        )
    used = sweep_points.used_adapters([start, end])
    count = used if loras is None else max(used, len(loras.names))
    return count, sweep_points.line(start, end, points, count)


def _kl_scales(
    fixed: AnyPreference | None, loras: RewardLoRAs | None, first: float, last: float, points: int
) -> tuple[list[AnyPreference], list[str]]:
    """A mixture, or all adapters equally, at several KL scales, with labels."""
    if fixed is None:
        if loras is None:
            raise ValueError(
                "A row of KL scales needs a mixture: connect preference_start (Preference Weights), or reward_loras for "
                "all adapters equally."
            )
        fixed = Preference((1.0,) * len(loras.names))
    if all(sum(part.weights) == 0 for part in fixed.parts):
        raise ValueError("All weights of preference_start are 0: raise at least one.")
    names = [f"kl {sweep_points.number(scale)}" for scale in sweep_points.kl_scales(first, last, points)]
    return sweep_points.kl_row(fixed, first, last, points), names


def _plain(name: str, preference: AnyPreference | None) -> Preference | None:
    """A preference that is the same everywhere and at every step, or None."""
    if preference is not None and not isinstance(preference, Preference):
        raise ValueError(
            f"{name} changes over time or space: connect plain Preference Weights, or sweep its KL scales (kind: kl scales)."
        )
    return preference
