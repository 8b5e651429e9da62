import json
import subprocess
import sys

import pytest

from coopnet_core.cotraining.metrics_file import MetricsFile, read_metrics
from coopnet_core.errors import NoUsableDataError


def _write(path, steps):
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps))


def test_lines_are_whole_and_numbers_json(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl", None)
    file.add({"step": 1, "loss": 0.123456789, "tau": float("nan"), "stage": "flow", "validation": False})
    file.sync()
    file.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert text == '{"step": 1, "loss": 0.1234568, "tau": null, "stage": "flow", "validation": false}\n'


def test_a_resume_drops_later_steps_and_the_half_line(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, [1, 2, 2, 3])
    path.write_text(path.read_text() + '{"step": 4, "lo')
    file = MetricsFile(path, 2)
    file.add({"step": 3, "loss": 2.0})
    file.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 1.0), (2, 1.0), (3, 2.0)]


def test_a_half_line_of_the_last_step_kept_is_dropped_too(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, [1])
    path.write_text(path.read_text() + '{"step": 1, "lo')
    MetricsFile(path, 9).close()
    assert len(path.read_text().splitlines()) == 1


def test_a_new_run_begins_an_empty_file(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, [1, 2])
    MetricsFile(path, None).close()
    assert path.read_text() == ""
    with pytest.raises(NoUsableDataError, match="no line"):
        read_metrics(path)


def test_a_disk_without_space_leaves_no_half_line(tmp_path):
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path, None)
    file.add({"step": 1})

    class _Full:
        """Takes ten bytes, then no more."""

        def __init__(self, real):
            self._real, self._left = real, 10

        def write(self, data):
            if not self._left:
                raise OSError(28, "No space left on device")
            taken, self._left = self._left, 0
            return self._real.write(data[:taken])

        def __getattr__(self, name):
            return getattr(self._real, name)

    real, file._file = file._file, _Full(file._file)
    with pytest.raises(OSError, match="No space"):
        file.add({"step": 2, "loss": 1.0})
    assert path.read_text() == '{"step": 1}\n'
    file._file = real
    file.add({"step": 3})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_the_log_is_read_without_matplotlib():
    code = "import coopnet_core.cotraining.trainer, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
