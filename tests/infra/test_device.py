import platform

import pytest
import torch

from r1mini.infra.device import autocast, warn_of_slow_bf16


@pytest.mark.parametrize(
    "machine, capability, bf16, warns",
    [
        ("x86_64", "AVX2", True, True),
        ("AMD64", "DEFAULT", True, True),
        ("x86_64", "AVX2", False, False),
        ("x86_64", "AVX512", True, False),
        ("arm64", "DEFAULT", True, False),
    ],
)
def test_slow_bf16_is_told_once(monkeypatch, capsys, machine, capability, bf16, warns):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    warn_of_slow_bf16.cache_clear()
    for _ in range(2):
        autocast(torch.device("cpu"), bf16)
    assert capsys.readouterr().err.count("no bfloat16 products") == warns
