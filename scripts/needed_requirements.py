"""Print the lines of requirements.txt that this machine still needs (one per line, for pip).

    needed_requirements.py requirements.txt [--leave-out-importable]

With a sourced ROS the system's own numpy, OpenCV and pytest must stay the ones in use (cv_bridge is compiled against
that numpy), so whatever the system's python imports already is left out. colcon is always kept: it builds and tests
with the python it is installed in, which has to be the environment's. Standard library only: it runs before anything
is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

ALWAYS = frozenset({"colcon_core", "colcon_ros"})


def needed(lines: list[str], leave_out_importable: bool) -> list[str]:
    """The requirements (without comments) of `lines`; `name  # module` names the module that tells it is present."""
    kept = []
    for line in lines:
        requirement, _, module = (part.strip() for part in line.partition("#"))
        if not requirement:
            continue
        present = module and module not in ALWAYS and importlib.util.find_spec(module) is not None
        if not (leave_out_importable and present):
            kept.append(requirement)
    return kept


def main() -> int:
    """Read the file named on the command line and print what is needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--leave-out-importable", action="store_true")
    arguments = parser.parse_args()
    requirements = needed(arguments.file.read_text(encoding="utf-8").splitlines(), arguments.leave_out_importable)
    sys.stdout.write("".join(f"{requirement}\n" for requirement in requirements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
