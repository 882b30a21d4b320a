"""Fuzz the adapter reader, guided by coverage, with atheris (libFuzzer): ``make fuzz``.

Good files of every kind are split into tensors, mutated, and joined with a matching header, so that most of them pass the check
of the header. Some get a wrong header, or arbitrary bytes. Every file must obey `reader_law`. The first file that breaks the law
ends the run and is saved; ``make fuzz FUZZ=FILE`` runs it again. FUZZ also takes other options of libFuzzer, and folders of
files to start from.
"""

from __future__ import annotations

import json
import logging
import math
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import atheris
from comfy_hosts import HOW_TO_GET_ONE, find_hosts

ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I8": 1, "BOOL": 1}
# Endings in addition to those of `reader_law`, which suffice for random choices without coverage.
MORE_ENDINGS = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_A",
    "lora_B",
    "lora.up.weight",
    "lora.down.weight",
    "lora_A.default.weight",
    "lora_B.default.weight",
    "lora_linear_layer.up.weight",
    "lora_linear_layer.down.weight",
    *(f"hada_{name}" for name in ("w1_b", "w2_a", "w2_b", "t2")),
    *(f"lokr_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t2")),
    *(f"{name}.weight" for name in ("a1", "a2", "b1", "b2")),
    "diff_b",
    "b_norm",
    "lora_B.bias",
    "rescale",
]
MOST_NUMBERS = 70_000  # of a tensor that a mutation makes: four layers of the small network


@dataclass
class Entry:
    """One tensor of a file: the name of its dtype in the format, its shape, its bytes."""

    dtype: str
    shape: list[int]
    content: bytes

    def fit(self) -> None:
        """Cut or repeat the bytes to the length that dtype and shape require."""
        size = math.prod(self.shape) * ITEM_SIZES[self.dtype]
        content = self.content or b"\0"
        self.content = (content * (size // len(content) + 1))[:size]


def take_apart(data: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return a file's tensors and metadata.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the bytes are no such file, or a mutation cannot represent them.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", None) or {}
    entries = {}
    for key, found in header.items():
        start, end = found["data_offsets"]
        entries[key] = Entry(found["dtype"], list(found["shape"]), data[begin + start : begin + end])
        if len(entries[key].content) != math.prod(entries[key].shape) * ITEM_SIZES[entries[key].dtype]:
            raise ValueError(f"{key} is not as long as it says")
    return entries, metadata


def with_header(header: bytes, content: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def put_together(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """Return a file whose header matches its content."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    content = bytearray()
    for key, entry in entries.items():
        start = len(content)
        content += entry.content
        header[key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, len(content)]}
    return with_header(json.dumps(header).encode(), bytes(content))


def base_of(key: str) -> str:
    return key.rsplit(".", 2 if key.endswith("weight") else 1)[0]


class Mutator:
    """libFuzzer's mutator and crossover for adapter files.

    Args:
        keys: names of layers.
        endings: of tensors' names.
        numbers: to write into tensors.
    """

    def __init__(self, keys: list[str], endings: list[str], numbers: list[float]) -> None:
        self.keys, self.endings, self.numbers = keys, endings, numbers

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        try:
            entries, metadata = take_apart(data)
        except (ValueError, TypeError, KeyError, AttributeError):
            return atheris.Mutate(data, most)
        kind = random.random()
        if kind < 0.03:
            return atheris.Mutate(data, most)
        if kind < 0.08:  # a wrong header
            begin = 8 + int.from_bytes(data[:8], "little")
            changed = with_header(atheris.Mutate(data[8:begin], begin + 100), data[begin:])
        elif kind < 0.12:
            name = random.choice(["diffusion_blend.kl_weight", "diffusion_blend.reward"])
            text = atheris.Mutate(metadata.get(name, "0.1").encode(), 100)
            changed = put_together(entries, {**metadata, name: text.decode(errors="replace")})
        else:
            for _ in range(random.choice([1, 1, 1, 2, 3])):
                if entries:
                    self._change(entries, random)
            changed = put_together(entries, metadata)
        return changed if len(changed) <= most else data

    def cross(self, data: bytes, other: bytes, most: int, seed: int) -> bytes:
        """Return one file with some tensors of another."""
        random = Random(seed)
        try:
            (entries, metadata), (others, _) = take_apart(data), take_apart(other)
        except (ValueError, TypeError, KeyError, AttributeError):
            return data
        entries |= {key: entry for key, entry in others.items() if random.random() < 0.7}
        changed = put_together(entries, metadata)
        return changed if len(changed) <= most else data

    def _change(self, entries: dict[str, Entry], random: Random) -> None:
        key = random.choice(list(entries))
        entry = entries[key]
        kind = random.choice(["number", "bytes", "dtype", "shape", "shape", "drop", "rename", "move", "copy", "alpha"])
        if kind == "number" and entry.dtype == "F32" and entry.content:
            place = 4 * random.randrange(len(entry.content) // 4)
            number = struct.pack("<f", random.choice(self.numbers))
            entry.content = entry.content[:place] + number + entry.content[place + 4 :]
        elif kind == "bytes" and entry.content:
            entry.content = atheris.Mutate(entry.content, len(entry.content))
            entry.fit()
        elif kind == "dtype":
            entry.dtype = random.choice(list(ITEM_SIZES))
            entry.fit()
        elif kind == "shape":
            shape = self._shape(entry.shape, random)
            if math.prod(shape) < MOST_NUMBERS:
                entry.shape = shape
                entry.fit()
        elif kind == "drop":
            del entries[key]
        elif kind == "rename":
            entries[f"{base_of(key)}.{random.choice(self.endings)}"] = entries.pop(key)
        elif kind == "move":  # move the whole update to another layer
            base, layer = base_of(key), random.choice(self.keys)
            for name in [name for name in entries if name.startswith(base)]:
                entries[layer + name.removeprefix(base)] = entries.pop(name)
        elif kind == "copy":
            entries[f"{base_of(key)}.{random.choice(self.endings)}"] = Entry(
                entry.dtype, list(entry.shape), entry.content
            )
        elif kind == "alpha":
            number = struct.pack("<f", random.choice(self.numbers))
            entries[f"{base_of(key)}.alpha"] = Entry("F32", [], number)

    @staticmethod
    def _shape(shape: list[int], random: Random) -> list[int]:
        """Return a shape near this one: transposed, with one side more or fewer, split, or of another length."""
        kind = random.choice(["turn", "more", "fewer", "other", "other", "any"])
        if kind == "any" or not shape:
            return [random.randint(0, 200) for _ in range(random.randint(0, 5))]
        place = random.randrange(len(shape))
        if kind == "turn":
            return shape[::-1]
        if kind == "more":
            return [*shape[:place], 1, *shape[place:]]
        if kind == "fewer":
            return [*shape[:place], *shape[place + 1 :]]
        length = shape[place]
        return [*shape[:place], random.choice([0, 1, 2, length // 2, length + 1, 2 * length]), *shape[place + 1 :]]


def instrument_the_host() -> None:
    """Instrument the functions of the host's adapter reader one by one, because it is imported with the whole host."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.weight_adapter

    for module in (comfy.lora, comfy.lora_convert):
        for function in vars(module).values():
            if getattr(function, "__module__", None) == module.__name__ and hasattr(function, "__code__"):
                atheris.instrument_func(function)
    for adapter in comfy.weight_adapter.adapters:
        atheris.instrument_func(adapter.load.__func__)


def main() -> None:
    hosts = find_hosts()
    if not hosts:
        raise SystemExit(HOW_TO_GET_ONE)
    sys.path.insert(0, str(hosts[0]))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    logging.disable(logging.CRITICAL)  # a line for each file
    instrument_the_host()
    atheris.enabled_hooks.add("str")  # keys are distinguished by their beginnings and endings
    with atheris.instrument_imports(include=["diffusion_blend"]):
        import reader_law
    import torch
    from safetensors.torch import save

    world = reader_law.World(reader_law.SOME_LAYERS)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    begun, found = folder / "begun-with", folder / "found"
    begun.mkdir()
    found.mkdir()
    for kind, tensors in world.files.items():
        (begun / kind).write_bytes(save(tensors))
    path = folder / "mutated.safetensors"

    @torch.inference_mode()
    def one_file(data: bytes) -> None:
        reader_law.check_file(data, path, world)

    mutator = Mutator(list(world.key_map), reader_law.ENDINGS + MORE_ENDINGS, reader_law.NUMBERS)
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    options = ["-max_len=300000", "-timeout=60", "-rss_limit_mb=6000", f"-artifact_prefix={folder}/"]
    arguments = [sys.argv[0], *options, "-print_final_stats=1", *sys.argv[1:]]
    if not given:
        arguments += [str(found), str(begun)]
    print(f"ComfyUI at {hosts[0]}; files in {folder}", flush=True)
    atheris.Setup(arguments, one_file, custom_mutator=mutator.mutate, custom_crossover=mutator.cross)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
