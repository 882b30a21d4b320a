"""Turn result lines into tables and a figure, one section for each card.

    python -P benchmarks/gpu/report.py RESULTS.jsonl [...] [--output FOLDER] [--docs]

``--output`` writes ``gpu.md`` and ``gpu.png`` there. ``--docs`` writes the newest GPU's tables between the marks of docs/gpu.md,
its figure to docs/images/gpu.png, and one sentence between the marks of README.md and docs/speed.md; figures of a CPU or of
small networks never go there. Lines of several files are joined; where a unit ran twice on a card, its newest run counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import tables  # noqa: E402  after its folder is on the path
from records import read  # noqa: E402
from tables import Line, of  # noqa: E402

BEGIN, END = "<!-- gpu: made by benchmarks/gpu/report.py -->", "<!-- end of gpu -->"
MEASURED_FIRST = "sd15-batch-1"
TITLES = {
    "sd15-batch-1": "SD 1.5, 512 x 512, one image",
    "sd15-batch-4": "SD 1.5, 512 x 512, four images",
    "sdxl": "SDXL, 1024 x 1024, one image",
    "sd35m": "SD 3.5 medium, 1024 x 1024, one image",
}


@dataclass
class Card:
    """What was measured on one card: unit -> the lines of its newest run, the first of which names the machine.

    Attributes:
        name: of the card.
        tiny: whether the networks were small.
        units: the lines.
        status: unit -> how it ended.
    """

    name: str
    tiny: bool
    units: dict[str, list[Line]] = field(default_factory=dict)
    status: dict[str, Line] = field(default_factory=dict)

    @property
    def real(self) -> bool:
        """Whether the figures may stand in the documentation."""
        return self.name != "CPU" and not self.tiny

    @property
    def dates(self) -> str:
        """When it was measured: the day, or the first and the last."""
        days = sorted({lines[0]["date"] for lines in self.units.values()})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def cards(paths: list[Path]) -> list[Card]:
    """Sort lines by card and unit, in the order in which the cards first appear.

    Raises:
        ValueError: a line of a unit comes before the line that names its machine.
    """
    found: dict[tuple[str, bool], Card] = {}
    for path in paths:
        where: dict[str, Card] = {}
        for line in read(path):
            unit = line["unit"]
            if line["what"] == "machine":
                card = found.setdefault((line["card"], line["tiny"]), Card(line["card"], line["tiny"]))
                where[unit], card.units[unit] = card, [line]
            elif line["what"] == "unit":
                if unit in where:
                    where[unit].status[unit] = line
            elif unit not in where:
                raise ValueError(f"{path}: a line of {unit} stands before the line that names its machine")
            else:
                where[unit].units[unit].append(line)
    return list(found.values())


def section(card: Card) -> str:
    """Everything that was measured on a card."""
    machine = next(iter(card.units.values()))[0]
    parts = [f"## {card.name}, {card.dates}\n"]
    if not card.real:
        why = "a CPU" if card.name == "CPU" else "small networks"
        parts.append(f"**Measured on {why}: these figures show that the program works, and nothing about a GPU.**\n")
    memory = f", {machine['memory'] / tables.GIB:.0f} GiB" if "memory" in machine else ""
    parts.append(f"{card.name}{memory}; torch {machine['torch']}; {machine['host']}; checkout {machine['commit']}.\n")
    lines = {unit: found[1:] for unit, found in card.units.items()}
    ceilings = lines.get("ceilings", [])
    for line in of(ceilings, "ceiling"):
        rate = line.get("flops_per_second")
        shown = f"{rate / 1e12:.3g} TFLOP/s" if rate else f"{line['bytes_per_second'] / 1e9:.4g} GB/s"
        parts.append(f"- {line['name']}: {shown}")
    parts += [text for unit, found in lines.items() for text in unit_text(unit, found, ceilings)]
    parts += all_of("Parity", tables.parity_table, lines, "parity")
    parts += all_of("The trainer", tables.trainer_table, lines, "trainer")
    parts += all_of("Long trainings", tables.training_table, lines, "training")
    parts += all_of("Host tests", tables.tests_text, lines, "test")
    missing = [line for found in lines.values() for line in of(found, "missing")]
    if missing:
        parts.append("\n### Not measured\n")
        parts += [f"- {line['name']}: {line['why']}" for line in missing]
    rows = [[unit, line["status"], f"{line['seconds']:.0f}"] for unit, line in card.status.items()]
    return "\n".join(parts) + "\n\n### Units\n\n" + tables.table(["unit", "status", "seconds"], rows)


def title_of(unit: str) -> str:
    """A unit's title, with its host where that is not the first."""
    name, _, host = unit.partition("@")
    return TITLES.get(name, name) + (f" ({host})" if host else "")


def unit_text(unit: str, lines: list[Line], ceilings: list[Line]) -> list[str]:
    """The tables of one unit of ratios; nothing for others."""
    if not of(lines, "variant"):
        return []
    setting = of(lines, "setting")[0]
    words = ", ".join(
        f"{name} {setting[name]}" for name in ("network", "dtype", "size", "batch", "steps", "rank", "cfg")
    )
    title = f"Small network in place of: {title_of(unit)}" if setting["network"] == "small" else title_of(unit)
    parts = [f"\n### {title}\n", f"{words}\n", tables.ratio_table(lines, ceilings)]
    if unit == MEASURED_FIRST:
        parts += ["Targets:\n", tables.target_table(lines)]
    return parts


def all_of(title: str, make: object, lines: dict[str, list[Line]], what: str) -> list[str]:
    """A table of all units' lines of a kind under its title, where there are any."""
    found = [line for unit in lines.values() for line in unit]
    return [f"\n### {title}\n", make(found)] if of(found, what) and callable(make) else []


def draw(card: Card, path: Path) -> bool:
    """Draw the ratio over the number of adapters; False where there is nothing to draw."""
    from matplotlib.figure import Figure

    units = [unit for unit in TITLES if unit in card.units and of(card.units[unit], "round")]
    if not units:
        return False
    figure = Figure((4.6 * len(units), 3.8), layout="constrained")
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        medians = {name: statistics.median(values) for name, values in tables.ratios(card.units[unit]).items()}
        numbers = sorted({int(name.split()[2].rstrip(",")) for name in medians if name.startswith("blend of")})
        for label, form in (("blend, one by one", "blend of {}, sequential"), ("blend, in one batch", "blend of {}, batched"),
                            ("the host's LoRA hooks", "host's LoRA hooks, {}"), ("swapping", "swapping, {}")):  # fmt: skip
            points = {count: medians[form.format(count)] for count in numbers if form.format(count) in medians}
            if points:
                axes.plot(list(points), list(points.values()), "o-", label=label)
        axes.plot(numbers, numbers, ":", color="grey", label="m base runs")
        axes.set(
            title=TITLES[unit], xlabel="adapters m", ylabel="seconds, base run = 1", ylim=(0, None), xticks=numbers
        )
    figure.axes[0].legend(fontsize="small")
    mark = "" if card.real else " (tries the program, no GPU figures)"
    figure.suptitle(f"{card.name}, {card.dates}{mark}")
    figure.savefig(path, dpi=110)
    return True


def sentence(card: Card) -> str:
    """The measurement in a sentence, for README.md and docs/speed.md."""
    medians = {name: statistics.median(v) for name, v in tables.ratios(card.units.get(MEASURED_FIRST, [])).items()}
    shown = []
    for name in tables.TARGETS:
        ways = [value for way, value in medians.items() if way == name or way.startswith(f"{name},")]
        if ways:
            shown.append(f"{name} {min(ways):.2f}")
    if not shown:
        return f"Measured on one GPU ({card.name}, {card.dates}): [docs/gpu.md](docs/gpu.md)."
    what = "SD 1.5 at 512 x 512 takes, relative to the base model"
    return f"On one GPU ({card.name}, {card.dates}) {what}: {', '.join(shown)} ([docs/gpu.md](docs/gpu.md))."


def replace(page: Path, text: str) -> None:
    """Put a text between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    old = page.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or END not in old:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    before, after = old.split(BEGIN)[0], old.split(BEGIN)[1].split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")


def write_docs(found: list[Card], root: Path) -> None:
    """Write the documentation of all GPUs; the sentences speak of the newest.

    Raises:
        ValueError: nothing was measured on a GPU with true-size networks.
    """
    real = [card for card in found if card.real]
    if not real:
        raise ValueError("these results come from a CPU or from small networks: they do not go into the documentation")
    newest = max(real, key=lambda card: card.dates)
    figure = (
        "\n![Seconds over the number of adapters](images/gpu.png)\n"
        if draw(newest, root / "docs/images/gpu.png")
        else ""
    )
    replace(root / "docs" / "gpu.md", f"\n{figure}\n" + "\n".join(map(section, real)) + "\n")
    replace(root / "README.md", sentence(newest))
    replace(root / "docs" / "speed.md", sentence(newest).replace("(docs/", "("))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files of result lines")
    parser.add_argument("--output", type=Path, help="folder for gpu.md and gpu.png; without it the tables are printed")
    parser.add_argument("--docs", action="store_true", help="write them into the documentation")
    options = parser.parse_args()
    found = cards(options.results)
    if options.docs:
        write_docs(found, ROOT)
    text = "# GPU figures\n\n" + "\n".join(map(section, found))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "gpu.md").write_text(text, encoding="utf-8")
        for number, card in enumerate(found):
            draw(card, options.output / ("gpu.png" if number == 0 else f"gpu-{number}.png"))
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
