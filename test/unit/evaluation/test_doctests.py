import doctest
import importlib

import pytest

MODULES = ("evaluation.depth", "evaluation.flow", "evaluation.mask", "evaluation.odometry", "evaluation.reports")


@pytest.mark.parametrize("name", [*MODULES, "visualization"])
def test_examples_in_the_docstrings(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"coopnet_core.{name}"))
    assert attempted > 0
    assert failed == 0
