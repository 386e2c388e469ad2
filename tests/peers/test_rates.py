"""Floors know torch's rates beside XLA's, on a GPU too: here a GPU is made believe."""

import jax
import torch

from benchmarks import measure


def test_the_rates_on_a_gpu_are_the_faster_librarys(monkeypatch):
    waits, devices = [], []

    def on_cpu(make):
        def made(*arguments, device, **options):
            devices.append(device)
            return make(*arguments, **options)

        return made

    monkeypatch.setattr(measure, "_GPU_SIDES", ((32, 32, 32),))
    monkeypatch.setattr(measure, "_READ_BYTES", {"gpu": 1 << 16})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch, "randn", on_cpu(torch.randn))
    monkeypatch.setattr(torch, "ones", on_cpu(torch.ones))
    for rate in (measure.matrix_rate(), measure.bandwidth()):
        assert rate.value == max(rate.by.values()) and set(rate.by) == {"XLA", "torch"}
    assert set(devices) == {"cuda"} and len(waits) == 3 * (1 + 7)  # a product, a sum, a vector
