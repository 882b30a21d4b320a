"""An experiment of the paper: adapters to train, a sweep, and the form of its table, read from ``configs/paper``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts.files import find_file
from ...training.config import TrainConfig
from ..sweep.config import SweepConfig

FOLDER = "configs/paper"
FORMS = ("absolute", "gain")
_TRAINED = "train:"


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        title: the table or figure of the paper, and how this one differs from it.
        form: ``absolute`` rewards (Tables 1, 5, 7), or ``gain`` over the base (Tables 3 and 6).
        trainings: adapter's name -> settings.
        sweep: settings.
    """

    title: str
    form: str
    trainings: Mapping[str, TrainConfig]
    sweep: SweepConfig


def experiment_names() -> list[str]:
    """The experiments that come with the package."""
    folder = Path(__file__).parents[2] / FOLDER
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "train")


def load_experiment(name: str, output: Path, overrides: str = "") -> Experiment:
    """Read an experiment.

    Args:
        name: one of `experiment_names`, or a YAML file of one's own.
        output: folder of the experiment.
        overrides: YAML file with the same keys, whose entries replace the experiment's; empty is none.

    Raises:
        ValueError: an unknown name, a file that is no mapping, or an unknown form or key.
    """
    names = experiment_names()
    file = Path(name) if name.endswith((".yaml", ".yml")) else find_file(f"{FOLDER}/{name}.yaml")
    if not file.is_file():
        raise ValueError(f"no experiment {name!r}: choose from {', '.join(names)}, or give a YAML file")
    content = merged(_mapping(file), _mapping(Path(overrides)) if overrides else {})
    unknown = set(content) - {"title", "form", "common", "train", "sweep"}
    if unknown or content.get("form") not in FORMS or "sweep" not in content:
        raise ValueError(
            f"{file}: it needs title, form ({' or '.join(FORMS)}), sweep, and may have common and train; it has {list(content)}"
        )
    _check_sections(file, content)
    common = merged(_mapping(find_file(f"{FOLDER}/train.yaml")), content.get("common") or {})
    trainings = {
        adapter: _parsed(TrainConfig, merged(common, own) | {"output": str(output / "train" / adapter)})
        for adapter, own in (content.get("train") or {}).items()
    }
    settings: dict[str, Any] = dict(content["sweep"]) | {"output": str(output / "sweep")}
    for key in ("adapters", "morl"):
        sources: dict[str, Any] = dict(settings.get(key) or {})
        settings[key] = {entry: _trained_file(source, trainings, output) for entry, source in sources.items()}
    return Experiment(str(content["title"]), content["form"], trainings, _parsed(SweepConfig, settings))


def _check_sections(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse sections that are no mappings, as a file of changes may have them."""
    trainings = content.get("train") or {}
    sections = {"sweep": content["sweep"], "common": content.get("common") or {}, "train": trainings}
    sections |= {f"train.{name}": own for name, own in trainings.items()} if isinstance(trainings, Mapping) else {}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise ValueError(f"{file}, or the changes to it: {name} is {section!r}: it must be a mapping of settings")


def trained_file(adapter: str, output: Path) -> Path:
    """The file of an adapter that an experiment trains."""
    return output / "adapters" / f"{adapter}.safetensors"


def _trained_file(source: str, trainings: Mapping[str, TrainConfig], output: Path) -> str:
    if not source.startswith(_TRAINED):
        return source
    adapter = source.removeprefix(_TRAINED)
    if adapter not in trainings:
        raise ValueError(f"the sweep uses {source!r}, and the experiment trains only {', '.join(trainings)}")
    return str(trained_file(adapter, output))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another's entries; mappings in both are merged, except rewards and adapters, which are replaced."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        whole = key in ("rewards", "adapters", "morl", "affine", "method_weights")
        result[key] = merged(result[key], value) if nested and not whole else value
    return result


def _mapping(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {file} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a mapping of settings")
    return content


def _parsed(settings: Any, content: Mapping[str, Any]) -> Any:
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
        try:
            values = vars(parser.instantiate(parser.parse_args(["--config", str(file)])))
        except ArgumentError as error:
            raise ValueError(f"{settings.__name__}: {error}") from error
    values.pop("config")
    return settings(**values)
