"""Networks, losses, training steps and the predictor give the same on a GPU as on the CPU (see the limits there)."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_comparisons import Case, cases, compare

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.title) for case in cases(CUDA)])
def test_the_gpu_gives_what_the_cpu_gives(case: Case):
    comparison = compare(case, CUDA)
    assert comparison.passed, comparison
