"""Look up known vulnerabilities of everything installed in this environment, and list the packages that could not be looked up.

``make audit`` runs pip-audit against the package index's advisories; uv fetches pip-audit if it is missing. If the index has no
advisories, or there is no network, the report says NOT AUDITED. A known vulnerability is a failure.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import distributions
from typing import Any

OURS = "diffusion-blend"


def installed() -> list[str]:
    """Return name==version of every distribution in this environment except our own, without local version tags (+cpu)."""
    found = {(each.metadata["Name"].lower(), each.version.partition("+")[0]) for each in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found) if name != OURS]


def audit(requirements: list[str]) -> dict[str, Any] | None:
    """Return pip-audit's findings. If it cannot reach its service, print its output and return None."""
    uv = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else ["uv"]
    tool = [*uv, "tool", "run", "pip-audit"]
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "-r", "/dev/stdin"]
    done = subprocess.run(
        [*tool, *options], input="\n".join(requirements), check=False, capture_output=True, text=True, timeout=900
    )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        print((done.stderr or done.stdout).strip().splitlines()[-1])
        return None


def main() -> int:
    requirements = installed()
    findings = audit(requirements)
    if findings is None:
        print(f"NOT AUDITED: none of the {len(requirements)} installed packages could be looked up.")
        return 0
    packages = findings["dependencies"]
    skipped = [f"{package['name']}" for package in packages if "skip_reason" in package]
    bad = [(package, vulnerability) for package in packages for vulnerability in package.get("vulns", [])]
    for package, vulnerability in bad:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
        print(f"VULNERABLE: {package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(
        f"Looked up {len(packages) - len(skipped)} of {len(requirements)} installed packages: {len(bad)} vulnerabilities."
    )
    if skipped:
        print(f"NOT AUDITED, because the package index has no advisories for them: {', '.join(skipped)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
