"""The device that a worker computes on."""

from __future__ import annotations

import pytest
import torch

from stages.base import StageError
from stages.policy import load

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
CANNOT = f"torch {torch.__version__} cannot use the GPU that resources ask for: "


def cuda(
    monkeypatch: pytest.MonkeyPatch, given: bool, there: bool, error: Exception | None, built: bool = True
) -> None:
    """How torch finds a GPU, and whether Ray gave the worker one."""

    def init() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(load, "has_gpu", lambda: given)


@pytest.mark.parametrize(
    ("error", "built", "said"),
    [
        (RuntimeError(TOO_OLD), True, "The NVIDIA driver on your system is too old (found version 11040); update the "
         "driver, or install a torch that is built for an earlier CUDA"),
        (RuntimeError("No CUDA GPUs are available"), True, "No CUDA GPUs are available; see whether nvidia-smi shows "
         "it, or leave gpus out"),
        (None, True, "it sees none; see whether nvidia-smi shows it, or leave gpus out"),
        (AssertionError("Torch not compiled with CUDA enabled"), False, "it was built for CPUs; install a build for "
         "CUDA, or leave gpus out"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_no_cpu(
    error: Exception | None, built: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda(monkeypatch, True, False, error, built)
    with pytest.raises(StageError) as caught:
        load.device_of_worker()
    assert str(caught.value) == CANNOT + said
    monkeypatch.setattr(load, "has_gpu", lambda: False)
    assert load.device_of_worker() == torch.device("cpu")


def test_a_gpu_is_named_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, True, True, None)
    assert load.device_of_worker() == torch.device("cuda", 3)
