"""Where the files shipped beside the code (config/, models/, launch/) are found."""

from __future__ import annotations

from pathlib import Path

from coopnet_core.errors import UsageError

SHIPPED_WEIGHTS = "models/small_rendered.safetensors"
"""The weights that everything starts from unless others are named; see `shipped_file`."""
_PACKAGE_NAME = "coopnet_ros"


def share_directory() -> Path:
    """The folder holding `config/` and `models/`: the checkout, or `share/coopnet_ros` of the install prefix.

    Raises:
        UsageError: neither exists (the package was copied without its data files).
    """
    package = Path(__file__).resolve().parent
    candidates = [package.parent]
    candidates += [parent / "share" / _PACKAGE_NAME for parent in package.parents]
    for candidate in candidates:
        if (candidate / "config" / "presets").is_dir():
            return candidate
    raise UsageError(
        f"The configuration files of {_PACKAGE_NAME} were not found beside {package} nor in share/{_PACKAGE_NAME} "
        "above it. Install with colcon, or run from a checkout."
    )


def shipped_file(relative: str) -> Path:
    """The path of a shipped file such as `config/presets/cpu-small.yaml`.

    Raises:
        UsageError: it does not exist; the message lists its neighbours.
    """
    path = share_directory() / relative
    if not path.exists():
        neighbours = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        raise UsageError(f"No shipped file {relative}. Its folder holds: {', '.join(neighbours) or 'nothing'}.")
    return path
