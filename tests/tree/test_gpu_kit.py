"""The GPU kit without a GPU: what is packed, how units are run and cut off, and what the report makes of their lines."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import comfy_hosts
import pytest

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def kit(monkeypatch):
    """The kit's folder on the path; its modules are forgotten afterwards, because their names are common ones."""
    monkeypatch.syspath_prepend(str(KIT))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if str(KIT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def make_host(folder):
    for name in ("comfy/ldm/models/net.py", "web/page.py", "models/lora.py", "tests/test.py", "comfy/picture.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("pass\n")
    (folder / "comfy" / "large.json").write_bytes(b" " * 2_000_001)
    (folder / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    return folder


def make_wheels(folder):
    """A wheel of comfy-kitchen's layout that pip installs."""
    folder.mkdir()
    info = "comfy_kitchen-1.dist-info"
    files = {
        "comfy_kitchen/__init__.py": "here = True\n",
        "comfy_kitchen/backends/cuda/_C.abi3.so": "nvidia",
        "comfy_kitchen/backends/hip/_C.abi3.so": "amd",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: comfy-kitchen\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "comfy_kitchen-1-cp312-abi3-manylinux_2_28_x86_64.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return folder


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        out=tmp_path / "packed",
        host=make_host(tmp_path / "ComfyUI"),
        also=[],
        with_kitchen=True,
        without_checkout=True,
        wheels=make_wheels(tmp_path / "own wheels"),
    )


def names(path):
    with tarfile.open(path) as tar:
        return sorted(tar.getnames())


def test_the_host_is_packed_without_media_models_and_tests(kit, options):
    import pack

    pack.pack(options)
    assert names(options.out / "hosts" / "ComfyUI.tar.xz") == ["comfy/ldm/models/net.py", "comfyui_version.py"]
    first = (options.out / "hosts" / "ComfyUI.tar.xz").read_bytes()
    shutil.rmtree(options.out)
    os.utime(options.host / "comfyui_version.py", (0, 0))
    pack.pack(options)
    assert (options.out / "hosts" / "ComfyUI.tar.xz").read_bytes() == first


def test_compiled_libraries_leave_the_wheel_and_nvidias_is_packed_apart(kit, options):
    import pack

    pack.pack(options)
    (wheel,) = (options.out / "wheels").glob("*.whl")
    assert wheel.name == "comfy_kitchen-1-py3-none-any.whl"  # what is left is Python
    with zipfile.ZipFile(wheel) as content:
        record = content.read("comfy_kitchen-1.dist-info/RECORD").decode()
        assert "comfy_kitchen/__init__.py,," in record
        assert not [name for name in (*content.namelist(), record) if ".so" in name]
    assert names(options.out / "kitchen" / "cuda.tar.xz") == ["comfy_kitchen/backends/cuda/_C.abi3.so"]


def test_the_checkout_is_what_git_tracks_as_it_lies_here(kit, tmp_path):
    import pack

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "-q")
    (tmp_path / "tracked.py").write_text("1")
    git("add", ".")
    (tmp_path / "untracked.py").write_text("2")
    (tmp_path / "tracked.py").write_text("changed")
    assert pack.tracked_files(tmp_path) == [tmp_path / "tracked.py"]
    pack.write_tar(tmp_path / "checkout.tar.xz", tmp_path, pack.tracked_files(tmp_path))
    with tarfile.open(tmp_path / "checkout.tar.xz") as tar:
        member = tar.extractfile("tracked.py")
        assert member is not None and member.read() == b"changed"


def test_an_old_folder_is_not_packed_into(kit, options):
    import pack

    pack.pack(options)
    with pytest.raises(SystemExit, match="is not empty"):
        pack.pack(options)


def test_a_folder_that_is_too_large_is_refused(kit, options, monkeypatch):
    import pack

    monkeypatch.setattr(pack, "LIMIT", 100)
    with pytest.raises(SystemExit, match="more than 100"):
        pack.pack(options)


def test_a_folder_without_a_host_is_refused(kit, options, tmp_path):
    import pack

    options.also = [tmp_path / "own wheels"]
    with pytest.raises(SystemExit, match="not a ComfyUI"):
        pack.pack(options)


def test_every_wheel_is_pinned_and_the_hosts_own_pins_are_kept(kit):
    import pack

    pins = dict(line.split("==") for line in pack.pinned())
    assert len(pins) == len(pack.pinned()) > 0
    for host in comfy_hosts.find_hosts()[:1]:
        lines = (host / "requirements.txt").read_text().split()
        theirs = dict(line.split("==") for line in lines if "==" in line)
        assert {name: theirs[name] for name in pins if name in theirs} == {
            name: pin for name, pin in pins.items() if name in theirs
        }


def test_a_packed_folder_sets_itself_up(kit, options, tmp_path):
    import pack

    pack.pack(options)
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path)}
    work = tmp_path / "work"
    command = ["bash", str(options.out / "run.sh"), "--work", str(work), "--list"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "sd15-batch-1" in done.stdout
    assert (work / "site" / "comfy_kitchen" / "backends" / "cuda" / "_C.abi3.so").read_text() == "nvidia"
    assert (work / "hosts" / "ComfyUI" / "comfy" / "ldm" / "models" / "net.py").is_file()
    assert (work / "import" / "diffusion_blend" / "benchmarks").is_dir()


def test_a_folder_without_a_manifest_says_what_is_missing(tmp_path):
    shutil.copy(KIT / "run.sh", tmp_path)
    done = subprocess.run(["bash", tmp_path / "run.sh"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds no manifest.json" in done.stderr


def test_the_stub_of_av_can_be_imported_and_not_used():
    program = (
        "import av\nfrom av.container import InputContainer\nfrom av.video.reformatter import ColorRange\n"
        "assert not isinstance(1, av.VideoStream)\n"
        "try:\n    av.open('x')\nexcept RuntimeError as error:\n    print(error)\n"
    )
    environment = {"PYTHONPATH": str(KIT / "stubs")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert "only the benchmark's stub of av" in done.stdout


def test_units_have_names_of_their_own_and_programs(kit):
    import units

    known = [unit.name for unit in units.UNITS]
    assert len(set(known)) == len(known)
    assert not set(known) & set(units.PARTS)
    assert {unit.part for unit in units.UNITS} == set(units.PARTS)
    assert [unit.name for unit in units.UNITS if not (KIT / unit.script).is_file()] == []
    assert units.chosen(["b", "parity"]) == [u for u in units.UNITS if u.part == "b" or u.name == "parity"]
    with pytest.raises(ValueError, match="no part or unit is called sd16: choose from a, alignment"):
        units.chosen(["sd16"])


def test_a_further_host_is_measured_for_parity_after_the_first(kit, tmp_path):
    import runner

    hosts = [runner.Host(tmp_path / name, name, "a commit") for name in ("first", "second")]
    work = runner.work_list(argparse.Namespace(part=["c", "e"]), hosts)
    again = [unit.name for unit, host in work if host is hosts[1]]
    assert again == [unit.name for unit, _ in work if unit.name in runner.ON_EVERY_HOST][: len(again)] != []
    order = [("e" if unit.part == "e" else host.title) for unit, host in work]
    assert order == sorted(order, key=["first", "second", "e"].index)


def run(program, tmp_path, seconds=60.0):
    """Run a program as a unit; returns the result and the lines it wrote."""
    import records
    import runner
    import units

    script = tmp_path / "unit.py"
    script.write_text(f"from records import of_this_unit\nrecords = of_this_unit()\n{program}\n")
    unit = units.Unit("unit", "a", 60, str(script))
    options = argparse.Namespace(out=tmp_path, cpu=True, tiny=True)
    host = runner.Host(tmp_path, "a host", "a commit")
    result = runner.run("unit", unit, host, options, seconds)
    file = tmp_path / "results.jsonl"
    return result, list(records.read(file)) if file.exists() else []


def test_a_unit_that_is_cut_off_keeps_its_lines_and_leaves_no_process(kit, tmp_path):
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "records.write('first', pid=child.pid)\ntime.sleep(600)\nrecords.write('second')"
    )
    for seconds in (3, 15, 60):  # a busy machine may take longer to the first line
        result, lines = run(program, tmp_path, seconds)
        assert result["status"] == "cut"
        if lines:
            break
    assert [line["what"] for line in lines] == ["first"]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{lines[0]['pid']}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{lines[0]['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return
        time.sleep(0.1)
    assert not Path(f"/proc/{lines[0]['pid']}").exists()


def test_a_unit_that_fails_says_what_it_said_last(kit, tmp_path):
    result, lines = run("records.write('first', value=1.5)\nraise SystemExit('the device is gone')", tmp_path)
    assert result["status"] == "failed"
    assert result["said"][-1] == "the device is gone"
    assert lines == [{"unit": "unit", "what": "first", "value": 1.5}]


def test_a_unit_that_ends_is_done(kit, tmp_path):
    result, _ = run("import sys\nassert '--cpu' in sys.argv and '--tiny' in sys.argv", tmp_path)
    assert result["status"] == "done"


def test_lines_are_read_up_to_where_a_run_was_cut_off(kit, tmp_path):
    import records

    file = tmp_path / "results.jsonl"
    file.write_text('{"unit": "a", "what": "x"}\n{"unit": "a", "wh')
    assert list(records.read(file)) == [{"unit": "a", "what": "x"}]
    records.Records(file, "b").write("y")
    assert list(records.read(file)) == [{"unit": "a", "what": "x"}, {"unit": "b", "what": "y"}]
    file.write_text('{"unit": "a", "wh\n{"unit": "a", "what": "x"}\n')
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        list(records.read(file))
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.Records(file, "a").write("x", value=float("nan"))


SECONDS = [{"base": 1.0, "stochastic of 4": 1.01, "blend of 2, sequential": 2.0, "blend of 2, batched": 1.5,
            "swapping, 2": 3.0, "soup of 4": 1.2},
           {"base": 2.0, "stochastic of 4": 2.2, "blend of 2, sequential": 4.2, "blend of 2, batched": 3.4,
            "swapping, 2": 6.6, "soup of 4": 2.4},
           {"base": 1.0, "stochastic of 4": 1.0, "blend of 2, sequential": 2.2, "blend of 2, batched": 1.6,
            "swapping, 2": 3.1, "soup of 4": 1.0}]  # fmt: skip


def lines_of(card, *, tiny=False, date="2026-01-02", seconds=SECONDS):
    unit, values = "sd15-batch-1", []
    machine = {"card": card, "tiny": tiny, "date": date, "torch": "2", "host": "ComfyUI 0.33.0", "commit": "abc"}
    values.append({"what": "machine", **machine})
    setting = {"kind": "sd15", "size": 64, "batch": 1, "steps": 5, "rank": 4, "dtype": "float16", "cfg": 7.0}
    values.append({"what": "setting", "network": "small" if tiny else "true size", **setting})
    for name in seconds[0]:
        calls = 2 if " 2" in name else 1
        values.append({"what": "variant", "name": name, "calls": calls, "peak_bytes": calls * 2**30, "finite": True})
    values += [{"what": "round", "number": i, "seconds": row} for i, row in enumerate(seconds, 1)]
    values.append({"what": "switch", "milliseconds": [1.0, 9.0, 2.0], "adapters": 4})
    values.append({"what": "missing", "name": "GRPO", "why": "there is none"})
    values.append({"what": "unit", "host": "ComfyUI 0.33.0", "part": "a", "status": "done", "seconds": 9.0})
    return "".join(json.dumps({"unit": unit, **value}) + "\n" for value in values)


def test_ratios_are_medians_of_each_rounds_own_ratio(kit, tmp_path):
    import report
    import tables

    file = tmp_path / "results.jsonl"
    file.write_text(lines_of("Card X"))
    (card,) = report.cards([file])
    assert statistics.median(tables.ratios(card.units["sd15-batch-1"])["stochastic of 4"]) == 1.01
    text = report.section(card)
    assert "## Card X, 2026-01-02" in text
    assert "| blend of 2, batched | 1.600 | 1.550 - 1.650 | 2 | 0.800 | 2.00 | 2.000 | - |" in text
    assert "- A new preference over 4 adapters: 2.00 ms" in text
    assert "- GRPO: there is none" in text
    assert "| stochastic of 4 | 1.02 | 1.010 | reached |" in text
    assert "| soup of 4 | 1.05 | 1.200 | missed |" in text
    assert "| blend of 2, batched | 1.6 | 1.600 | reached |" in text
    assert "| blend of 3 | 2.1 | - | not measured |" in text
    assert "| blend of 2 against swapping | faster | 0.516 of it | reached |" in text


def test_cards_are_never_mixed_and_the_newest_run_of_a_unit_counts(kit, tmp_path):
    import report

    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text(lines_of("Card X") + lines_of("Card Y") + lines_of("Card X", tiny=True))
    again = [{name: 1.0 for name in SECONDS[0]}]
    new.write_text(lines_of("Card X", date="2026-01-03", seconds=again))
    found = report.cards([old, new])
    assert [(card.name, card.tiny, card.dates) for card in found] == [
        ("Card X", False, "2026-01-03"), ("Card Y", False, "2026-01-02"), ("Card X", True, "2026-01-02")
    ]  # fmt: skip
    assert len([line for line in found[0].units["sd15-batch-1"] if line["what"] == "round"]) == 1


def test_a_line_without_a_machine_is_refused(kit, tmp_path):
    import report

    file = tmp_path / "results.jsonl"
    file.write_text('{"unit": "a", "what": "round"}\n')
    with pytest.raises(ValueError, match="before the line that names its machine"):
        report.cards([file])


@pytest.fixture
def pages(tmp_path):
    for name in ("README.md", "docs/speed.md", "docs/gpu.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "images").mkdir()
    return tmp_path


def test_a_gpus_figures_go_into_the_pages_with_card_and_date(kit, pages):
    import report

    file = pages / "results.jsonl"
    file.write_text(lines_of("CPU") + lines_of("Card Y", tiny=True) + lines_of("Card X"))
    for _ in range(2):  # writing them again changes nothing
        report.write_docs(report.cards([file]), pages)
    sentence = (
        "On one GPU (Card X, 2026-01-02) SD 1.5 at 512 x 512 takes, relative to the base model: stochastic of 4 1.01"
    )
    assert (pages / "README.md").read_text().count(sentence) == 1
    assert "[docs/gpu.md](gpu.md)" in (pages / "docs" / "speed.md").read_text()
    page = (pages / "docs" / "gpu.md").read_text()
    assert page.count("## Card X, 2026-01-02") == 1
    assert "Card Y" not in page and "## CPU" not in page
    assert (pages / "docs" / "images" / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_cpu_or_of_small_networks_never_do(kit, pages):
    import report

    file = pages / "results.jsonl"
    file.write_text(lines_of("CPU") + lines_of("Card Y", tiny=True))
    found = report.cards([file])
    with pytest.raises(ValueError, match="they do not go into the documentation"):
        report.write_docs(found, pages)
    assert all("nothing about a GPU.**" in report.section(card) for card in found)
    assert (pages / "docs" / "gpu.md").read_text() == (ROOT / "docs" / "gpu.md").read_text()
