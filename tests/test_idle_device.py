"""Whoever asks for a device that a reader does not use is told; classifiers do use it, and who lets us choose hears nothing."""
import warnings

import pytest

from aufacs_nb.estimation.estimator import _load, _moved


@pytest.mark.parametrize("name, device, idle", [("mesh18", "meta", True), ("face18", "meta", True), ("mesh18", "cpu", False),
                                                ("mesh18", None, False), ("small", "cpu", False), ("small", "meta", False)])
def test_a_device_without_effect_is_said(name, device, idle):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = _moved(_load(name), device)
    assert [str(one.message) for one in caught] == [
        f"device={device} does nothing here: readers of meshes and faces compute on the CPU."] * idle
    assert made.device.type == ("meta" if name == "small" and device == "meta" else "cpu")
