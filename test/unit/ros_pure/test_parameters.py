"""The table of parameters: complete, consistent, and in step with config/coopnet_node.yaml."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from coopnet_core.errors import UsageError
from coopnet_ros.parameters import PARAMETERS, ParameterSpec, check_values, spec_of

CONFIG = Path(__file__).resolve().parents[3] / "config" / "coopnet_node.yaml"
PROFILES = sorted(CONFIG.parent.glob("profiles/*.yaml"))


def flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def test_the_shipped_file_declares_every_parameter_with_its_default():
    content = yaml.safe_load(CONFIG.read_text())
    values = flatten(content["/**"]["ros__parameters"])
    check_values(values)
    expected = {
        spec.name: list(spec.default) if isinstance(spec.default, tuple) else spec.default for spec in PARAMETERS
    }
    assert values == expected


def test_there_is_a_profile_for_a_laptop_a_robot_and_a_server():
    assert [path.stem for path in PROFILES] == ["datacenter_gpu", "jetson", "laptop_cpu"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_holds_nothing_but_differences_each_under_its_reason(path):
    values = flatten(yaml.safe_load(path.read_text())["/**"]["ros__parameters"])
    assert values
    check_values(values)
    for name, value in values.items():
        assert value != spec_of(name).default, f"{name} is the default"
    lines = [line.strip() for line in path.read_text().splitlines()]
    for before, line in pairwise(lines):
        # a group and a setting of the same reason stand together
        if ":" in line and not line.startswith(("#", "/**", "ros__parameters", "camera_info_reliability")):
            assert before.startswith("#") or before == "ros__parameters:" or line == "points:", line


@pytest.mark.parametrize("spec", PARAMETERS, ids=lambda spec: spec.name)
def test_every_default_is_allowed_and_described(spec):
    assert spec.refusal(spec.default) is None
    assert spec.description[0].isupper() or spec.description.startswith(("raw", "odom"))
    assert spec.description.endswith(".")
    if spec.type_name in ("int", "double"):
        assert spec.minimum is not None
        assert spec.maximum is not None


def test_names_are_unique():
    assert len({spec.name for spec in PARAMETERS}) == len(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("scale", 0.0, "at least 1e-06"),
        ("scale", math.nan, "finite"),
        ("scale", 1, "double"),
        ("input_width", 1.5, "int"),
        ("autostart", 1, "bool"),
        ("far_value", "far", "nan, inf"),
        ("base_to_camera.translation", (0.0, 1.0), "3"),
        ("base_to_camera.translation", (0.0, 1.0, "up"), "double_array"),
        ("motion_threshold", 1.5, "at most 1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(name, value, says):
    assert says in spec_of(name).refusal(value)
    with pytest.raises(UsageError, match=says):
        check_values({name: value})


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="max_pair_gap"):
        check_values({"max_pairgap": 1.0})


@pytest.mark.parametrize(
    "values",
    [
        {"color.depth_near": 90.0},
        {"base_to_camera.rotation": (0.0, 0.0, 0.0, 0.0)},
        {"input_width": 416},
        {"scale_source": "camera_height", "base_to_camera.source": "parameters"},
        {
            "scale_source": "camera_height",
            "base_to_camera.source": "parameters",
            "base_to_camera.translation": (1.0, 0.0, -0.2),
        },
    ],
)
def test_values_that_do_not_go_together_are_refused(values):
    with pytest.raises(UsageError):
        check_values(values)


@pytest.mark.parametrize(
    "values",
    [
        {"camera_height": 1.2, "base_to_camera.source": "parameters"},
        {"base_to_camera.translation": (0.0, 0.0, 1.2), "base_to_camera.source": "parameters"},
        {"base_to_camera.source": "tf"},
        {},
    ],
)
def test_a_height_of_the_camera_may_come_from_three_places(values):
    check_values({"scale_source": "camera_height", **values})


def test_a_constraint_is_put_in_words():
    assert ParameterSpec("x", 1.0, "X.", minimum=0.0).constraint == "at least 0"
    assert ParameterSpec("x", "a", "X.", choices=("a", "b")).constraint == "one of a, b"
