#!/usr/bin/env python3
"""Write the reference from the declarations: tables in README.md and docs/parameters.md, and config/coopnet_node.yaml.

Topics and services are declared in coopnet_ros/interface.py, parameters in coopnet_ros/parameters.py. Run it after a
change there; `--check` (run by the tests) writes nothing and fails where a file is not in step. Needs no ROS.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from coopnet_ros.interface import SERVICES, TOPICS  # noqa: E402
from coopnet_ros.parameters import PARAMETERS, ParameterSpec  # noqa: E402

YAML_HEADER = """\
# Parameters of coopnet_node with their defaults. Use: coopnet_node --ros-args --params-file <this file>
# The pattern /** fits the node in any namespace and under any name. `ros2 param describe` shows the ranges.
# Written by scripts/write_reference.py from coopnet_ros/parameters.py.
"""
LINE_LENGTH = 120


def topics_table() -> str:
    """The topics, inputs first, as Markdown."""
    rows = []
    for spec in TOPICS:
        kind = f"{_short(spec.type_name)} {spec.encoding}".strip()
        condition = f" With `{spec.condition}`." if spec.condition else ""
        rows.append((spec.direction, f"`{spec.name}`", kind, spec.description + condition))
    return _table(("", "topic", "type", "meaning"), rows)


def services_table() -> str:
    """The services as Markdown."""
    rows = [(f"`{spec.name}`", _short(spec.type_name), spec.description) for spec in SERVICES]
    return _table(("service", "type", "does"), rows)


def parameters_table() -> str:
    """Every parameter as Markdown."""
    rows = [
        (
            f"`{spec.name}`",
            spec.type_name,
            f"`{_value(spec)}`",
            spec.constraint,
            "at start" if spec.read_only else "any time",
            spec.description,
        )
        for spec in PARAMETERS
    ]
    return _table(("parameter", "type", "default", "allowed", "can be set", "meaning"), rows)


def parameter_file() -> str:
    """config/coopnet_node.yaml: every default under its description."""
    lines = [YAML_HEADER + "/**:", "  ros__parameters:"]
    groups: dict[str, list[ParameterSpec]] = {}
    for spec in PARAMETERS:
        group = spec.name.rpartition(".")[0]
        groups.setdefault(group or spec.name, []).append(spec)
    for group, specs in groups.items():
        grouped = "." in specs[0].name
        if grouped:
            lines.append(f"    {group}:")
        for spec in specs:
            lines += _entry(spec, 6 if grouped else 4)
    return "\n".join(lines) + "\n"


def filled(text: str, blocks: dict[str, str]) -> str:
    """The text with new content between its marks, e.g. <!-- topics --> and <!-- /topics -->.

    Raises:
        SystemExit: a mark is missing.
    """
    for name, content in blocks.items():
        marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marked.search(text):
            raise SystemExit(f"There are no marks <!-- {name} --> ... <!-- /{name} -->.")
        text = marked.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def reference(root: Path) -> dict[Path, str]:
    """What the files below `root` should contain."""
    readme, parameters = root / "README.md", root / "docs" / "parameters.md"
    return {
        readme: filled(readme.read_text(), {"topics": topics_table(), "services": services_table()}),
        parameters: filled(parameters.read_text(), {"parameters": parameters_table()}),
        root / "config" / "coopnet_node.yaml": parameter_file(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 where `--check` finds a file that is not in step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; default: this one")
    options = parser.parse_args(argv)
    behind = {
        path: text for path, text in reference(options.root).items() if not path.exists() or path.read_text() != text
    }
    for path, text in behind.items():
        name = path.relative_to(options.root)
        if options.check:
            print(f"{name} is not in step with the declarations: run scripts/write_reference.py", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"{name} written")
    return 1 if options.check and behind else 0


def _short(type_name: str) -> str:
    """`sensor_msgs/Image` of `sensor_msgs/msg/Image`."""
    package, _, name = type_name.split("/")
    return f"{package}/{name}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _value(spec: ParameterSpec) -> str:
    """The default as YAML (which JSON is)."""
    default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
    return json.dumps(default)


def _entry(spec: ParameterSpec, indent: int) -> list[str]:
    """One parameter of the file, under its comment."""
    comment = spec.description + (f" [{spec.constraint}]" if spec.constraint else "")
    margin = " " * indent
    lines = textwrap.wrap(comment, LINE_LENGTH - indent - 2, break_on_hyphens=False, break_long_words=False)
    return [*(f"{margin}# {line}" for line in lines), f"{margin}{spec.name.rpartition('.')[2]}: {_value(spec)}"]


if __name__ == "__main__":
    sys.exit(main())
