"""Helpers shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_DEFAULT_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared recordings are kept among the files of the tests, those of started processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def shared_data():
    """A function giving the path of a folder of real recordings, or skipping the test where they are absent."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("COOPNET_SHARED", _DEFAULT_SHARED)) / name
        if not path.exists():
            pytest.skip(f"real recordings absent: {path} (set COOPNET_SHARED to the folder that holds {name})")
        return path

    return find
