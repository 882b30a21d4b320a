"""Start comfy-aimdo before torch is loaded, as the host's own ``main.py`` does, and then run ``parity.py``."""

from __future__ import annotations

import sys


def main() -> int:
    if "--cpu" not in sys.argv:
        import comfy_aimdo.control

        if not comfy_aimdo.control.init(nvml_pressure=True):
            raise SystemExit("comfy-aimdo did not load on this machine: dynamic VRAM cannot be measured.")
    import parity  # it loads torch

    return parity.main()


if __name__ == "__main__":
    sys.exit(main())
