"""A device that a reader does not use is written down; classifiers do use it."""
import logging

import pytest
import torch

from aufacs_nb.estimation.estimator import _stored


@pytest.mark.parametrize("name, device, idle", [("mesh18", "cuda", True), ("face18", "cuda", True), ("mesh18", "cpu", False),
                                                ("small", "cpu", False), ("small", "meta", False)])
def test_a_device_without_effect_is_written_down(caplog, name, device, idle):
    with caplog.at_level(logging.INFO, logger="aufacs_nb"):
        _stored(name, torch.device(device))
    assert (f"{name}: reads on the CPU; device={device!r} has no effect" in caplog.text) is idle
