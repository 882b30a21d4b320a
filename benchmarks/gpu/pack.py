"""Gather what a GPU machine without a network lacks into one folder: this checkout, a ComfyUI, wheels.

    python benchmarks/gpu/pack.py OUT [--host FOLDER] [--also FOLDER ...] [--with-kitchen] [--without-checkout] [--wheels FOLDER]

``OUT`` then holds ``run.sh``, ``checkout.tar.xz`` (the tracked files as they lie here), ``hosts/*.tar.xz`` (the hosts' code
without media, web pages and tests), ``wheels/`` and ``manifest.json``. With ``--with-kitchen`` it also holds
``kitchen/``: the NVIDIA library of comfy-kitchen, which the fp8 and int8 cases need.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import comfy_hosts  # noqa: E402  after its folder is on the path

LIMIT = 55 * 2**20
"""The most that a packed folder may take, bytes."""

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 27, 28)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
HOST_SUFFIXES = {".py", ".json", ".yaml", ".txt", ".toml", ".ini"}
NOT_OF_THE_HOST = {"web", "tests", "tests-unit", "blueprints", "models", "input", "output", "user", "temp",
                   "custom_nodes", "script_examples", "comfy_api_nodes"}  # fmt: skip
LARGEST_HOST_FILE = 2_000_000
"""Bytes. Tokenizers of large language models are larger, and no text is encoded on that machine."""

NATIVE = "comfy_kitchen/backends/"
"""comfy-kitchen's compiled libraries lie below this. Its Python part works without them."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--host", type=Path, help="the ComfyUI to pack; without it the newest that is found")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="further ComfyUI folders")
    parser.add_argument("--with-kitchen", action="store_true", help="also the NVIDIA library of comfy-kitchen (21 MiB)")
    parser.add_argument("--without-checkout", action="store_true", help="the checkout reaches the machine by itself")
    parser.add_argument("--wheels", type=Path, help="take the wheels from this folder instead of the package index")
    return parser.parse_args()


def pack(options: argparse.Namespace) -> dict[str, int]:
    """Write the folder.

    Returns:
        Name of each packed file -> bytes.

    Raises:
        SystemExit: the folder is not empty, a host is none, or the result is too large.
    """
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: give a new folder, so that nothing old is packed.")
    hosts = chosen_hosts(options)
    for folder in ("hosts", "wheels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy2(HERE / "run.sh", out / "run.sh")
    if not options.without_checkout:
        write_tar(out / "checkout.tar.xz", ROOT, tracked_files(ROOT))
    for host in hosts:
        write_tar(out / "hosts" / f"{host.name}.tar.xz", host, host_files(host))
    add_wheels(out, options.wheels, with_kitchen=options.with_kitchen)
    manifest = {
        "commit": commit(),
        "hosts": [{"folder": host.name, "title": comfy_hosts.title(host)} for host in hosts],
        "wheels": pinned(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    sizes = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(
            f"{out} takes {sum(sizes.values())} bytes, more than {LIMIT}: leave a host or the kitchen out."
        )
    return sizes


def chosen_hosts(options: argparse.Namespace) -> list[Path]:
    """The hosts to pack, the one that is measured first.

    Raises:
        SystemExit: none is found, or a folder holds none.
    """
    first = [options.host] if options.host else comfy_hosts.find_hosts()[:1]
    if not first:
        raise SystemExit(comfy_hosts.HOW_TO_GET_ONE)
    hosts = [folder.expanduser().resolve() for folder in (*first, *options.also)]
    wrong = [str(folder) for folder in hosts if not comfy_hosts.is_host(folder)]
    if wrong:
        raise SystemExit(f"not a ComfyUI: {', '.join(wrong)} (no comfyui_version.py there).")
    return list(dict.fromkeys(hosts))


def tracked_files(root: Path) -> list[Path]:
    """The files that git knows, as they lie in the folder now."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], check=True, stdout=subprocess.PIPE).stdout
    files = [root / name for name in listed.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def commit() -> str:
    """The checkout's commit, with a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def host_files(host: Path) -> list[Path]:
    """The host's code and small data files."""
    return [file for file in sorted(host.rglob("*")) if is_host_code(file, host)]


def is_host_code(file: Path, host: Path) -> bool:
    """Return whether the benchmark's machine needs a file of the host."""
    folders = file.relative_to(host).parts[:-1]
    hidden = any(part.startswith((".", "__pycache__")) for part in folders)
    if hidden or NOT_OF_THE_HOST.intersection(folders[:1]) or file.suffix not in HOST_SUFFIXES or not file.is_file():
        return False
    return file.stat().st_size <= LARGEST_HOST_FILE


def write_tar(path: Path, root: Path, files: Iterable[Path]) -> None:
    """Pack files by their place below ``root``; the same files give the same bytes."""
    with tarfile.open(path, "w:xz", preset=6) as tar:
        for file in files:
            entry = tar.gettarinfo(file, str(file.relative_to(root)))
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            with file.open("rb") as content:
                tar.addfile(entry, content)


def pinned() -> list[str]:
    """The requirements of wheels.txt."""
    lines = (HERE / "wheels.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def add_wheels(out: Path, source: Path | None, *, with_kitchen: bool) -> None:
    """Download or copy the wheels; comfy-kitchen's compiled libraries are taken out of its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            download(Path(folder))
        for wheel in sorted((source or Path(folder)).glob("*.whl")):
            if wheel.name.startswith("comfy_kitchen-"):
                # What is left of it is Python, which every Python installs.
                without_native(wheel, out / "wheels" / f"{'-'.join(wheel.name.split('-')[:2])}-py3-none-any.whl")
                if with_kitchen:
                    (out / "kitchen").mkdir()
                    native_library(wheel, out / "kitchen" / "cuda.tar.xz")
            else:
                shutil.copy2(wheel, out / "wheels" / wheel.name)


def download(folder: Path) -> None:
    """Download the pinned wheels for the machine's Python, whatever Python runs this."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "312", "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *pinned()], check=True)


def is_native(name: str) -> bool:
    """Return whether a member of comfy-kitchen's wheel is a compiled library."""
    return name.startswith(NATIVE) and ".so" in Path(name).name


def without_native(wheel: Path, target: Path) -> None:
    """Copy a wheel without its compiled libraries, and without their lines in its record."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as kept:
        for member in source.infolist():
            if is_native(member.filename):
                continue
            content = source.read(member)
            if member.filename.endswith(".dist-info/RECORD"):
                content = "".join(kept_records(content.decode())).encode()
            kept.writestr(member, content, zipfile.ZIP_DEFLATED)


def kept_records(record: str) -> Iterator[str]:
    """The lines of a wheel's record but those of compiled libraries."""
    for line in record.splitlines(keepends=True):
        if not is_native(next(csv.reader([line]))[0]):
            yield line


def native_library(wheel: Path, target: Path) -> None:
    """Pack the NVIDIA library of comfy-kitchen, by its place below site-packages."""
    with zipfile.ZipFile(wheel) as source, tarfile.open(target, "w:xz", preset=6) as tar:
        for member in source.infolist():
            if is_native(member.filename) and "/cuda/" in member.filename:
                entry = tarfile.TarInfo(member.filename)
                entry.size, entry.mode = member.file_size, 0o755
                tar.addfile(entry, io.BytesIO(source.read(member)))


def main() -> None:
    options = arguments()
    sizes = pack(options)
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.2f} MiB  {options.out}")


if __name__ == "__main__":
    main()
