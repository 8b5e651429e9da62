"""The rig of the node's tests, for tests of the whole."""

from __future__ import annotations

import importlib.util

from ros.conftest import make_rig, ros

__all__ = ["make_rig", "ros"]

if importlib.util.find_spec("rclpy") is None:  # a machine without ROS: these cannot be collected
    collect_ignore = ["test_endurance.py", "test_node_overhead_bench.py", "test_node_truth.py"]
