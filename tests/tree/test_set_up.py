"""The set-up's fingerprint, fetching a host, starting one, and the list of tiers."""

import subprocess
import sys

import comfy_hosts
import get_host
import pytest
import run_all
import set_up
import start


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]")
    (tmp_path / "tools" / "set_up.py").write_text("pass")
    return tmp_path


def make_host(folder, version="0.33.0", requirements="torch\n"):
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "requirements.txt").write_text(requirements)
    return folder


def test_the_fingerprint_changes_when_a_host_comes_or_changes(checkout):
    host = make_host(checkout / "ComfyUI")
    without, before = set_up.fingerprint([], checkout), set_up.fingerprint([host], checkout)
    assert without != before == set_up.fingerprint([host], checkout)
    (host / "requirements.txt").write_text("torch\neinops\n")
    assert set_up.fingerprint([host], checkout) != before


@pytest.mark.parametrize("file", ["pyproject.toml", "tools/set_up.py"])
def test_the_fingerprint_changes_with_the_checkout(checkout, file):
    before = set_up.fingerprint([], checkout)
    (checkout / file).write_text("changed")
    assert set_up.fingerprint([], checkout) != before


def test_set_up_does_nothing_twice_and_starts_again_after_an_interruption(checkout, monkeypatch):
    installed = []

    def install(folder, hosts):
        installed.append(folder)
        if len(installed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(set_up, "install", install)
    monkeypatch.setattr(set_up, "find_hosts", list)
    environment = checkout / ".venv"
    environment.mkdir()
    set_up.main(str(environment))
    set_up.main(str(environment))
    assert len(installed) == 1
    monkeypatch.setattr(set_up, "find_hosts", lambda: [make_host(checkout / "ComfyUI")])
    with pytest.raises(KeyboardInterrupt):
        set_up.main(str(environment))
    monkeypatch.setattr(set_up, "find_hosts", lambda: [checkout / "ComfyUI"])
    set_up.main(str(environment))
    set_up.main(str(environment))
    assert len(installed) == 3


def git(*words, cwd):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *words], cwd=cwd, check=True, capture_output=True)


def test_a_host_is_fetched_once(tmp_path):
    source = make_host(tmp_path / "source")
    (source / "comfy" / "ops.py").write_text("")
    git("init", "-q", cwd=source)
    git("add", "-A", cwd=source)
    git("commit", "-qm", "x", cwd=source)
    git("tag", "v0.33.0", cwd=source)
    got = get_host.get_host(f"file://{source}", "v0.33.0", tmp_path / "hosts")
    assert got == tmp_path / "hosts" / "ComfyUI-0.33.0" and comfy_hosts.is_host(got)
    assert get_host.get_host("file:///nowhere", "v0.33.0", tmp_path / "hosts") == got


def test_without_a_network_one_line_says_so(tmp_path):
    with pytest.raises(SystemExit, match=r"ComfyUI v0.33.0 could not be fetched from file:///nowhere: .+") as refused:
        get_host.get_host("file:///nowhere", "v0.33.0", tmp_path / "hosts")
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "hosts").iterdir()) == []


def test_start_links_the_checkout_and_runs_the_hosts_main(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for _ in range(2):
        start.prepare(tmp_path / "base", checkout)
    assert (tmp_path / "base" / "custom_nodes" / "diffusion-blend").resolve() == checkout
    words = start.command(tmp_path / "ComfyUI", tmp_path / "base", ["--port", "9000"])
    assert words[:2] == [sys.executable, str(tmp_path / "ComfyUI" / "main.py")]
    assert words[-2:] == ["--port", "9000"]


def test_every_folder_of_tests_is_a_tier():
    folders = {file.parent.name for file in (run_all.ROOT / "tests").glob("*/test_*.py")}
    tiers = {tier for job in run_all.jobs([run_all.ROOT]) for tier in job.tiers}
    assert tiers | set(run_all.FAST) == folders


def test_the_newest_hosts_come_first_and_their_titles_differ(tmp_path, monkeypatch):
    for name, version in (("ComfyUI", "0.33.0"), ("ComfyUI-head", "0.33.0"), ("ComfyUI-old", "0.3.64")):
        make_host(tmp_path / name, version)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.setattr(comfy_hosts, "HOSTS", tmp_path / "hosts")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    found = comfy_hosts.find_hosts()
    assert [host.name for host in found] == ["ComfyUI", "ComfyUI-head", "ComfyUI-old"]
    assert len({comfy_hosts.title(host) for host in found}) == 3


def test_the_newest_host_runs_all_cases_and_the_others_a_share(tmp_path):
    on_hosts = [job for job in run_all.jobs([tmp_path / "new", tmp_path / "old"]) if job.tiers == run_all.ON_EVERY_HOST]
    assert [(job.host.name, job.share) for job in on_hosts] == [("new", 1), ("old", run_all.SHARE_ON_OTHERS)]
