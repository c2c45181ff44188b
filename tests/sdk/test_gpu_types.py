"""Names of GPUs: what `gpu=` accepts, what it says about anything else, and what a driver's devices are called."""

from __future__ import annotations

import pytest

from squall import exception, gpu_types
from squall.spec import GpuRequest


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, ()),
        ("h100", (GpuRequest("H100"),)),
        ("H100:8", (GpuRequest("H100", 8),)),
        ("h100!:2", (GpuRequest("H100", 2, True),)),
        (" any ", (GpuRequest("ANY"),)),
        ("rtx-4090", (GpuRequest("RTX-4090"),)),
        ("B200+", (GpuRequest("B200+"),)),
        ("H100-MIG-1g.10gb", (GpuRequest("H100-MIG-1G.10GB"),)),
        ("a100-mig-1c.3g.20gb", (GpuRequest("A100-MIG-1C.3G.20GB"),)),
        (["H100", "A100-80GB:2"], (GpuRequest("H100"), GpuRequest("A100-80GB", 2))),
    ],
)
def test_requests_are_read_whatever_their_case(wanted: object, expected: tuple[GpuRequest, ...]) -> None:
    assert gpu_types.requests(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "message", "fix"),
    [
        ("H10", "gpu 'H10': H10 is not a type of GPU", "Did you mean H100? "),
        ("A100-80", "gpu 'A100-80': A100-80 is not a type of GPU", "Did you mean A100-80GB? "),
        ("H100:0", "gpu 'H100:0': '0' is not a number of devices", "n from 1 to 8"),
        ("H100:16", "gpu 'H100:16': '16' is not a number of devices", "n from 1 to 8"),
        ("H100:", "gpu 'H100:': '' is not a number of devices", "n from 1 to 8"),
        (
            "H100-MIG-1g.10gb:2",
            "gpu 'H100-MIG-1g.10gb:2': a program uses one MIG instance at a time",
            "larger instance",
        ),
        ("H10-MIG-1g.10gb", "gpu 'H10-MIG-1g.10gb': H10-MIG-1G.10GB is not a type of GPU", "There are T4, "),
        ("H100:2!", "gpu 'H100:2!': '2!' is not a number of devices", "Write H100!:2."),
        ("", "gpu '': nothing is not a type of GPU", "There are T4, "),
        (["H100", 8], "gpu must be text or a list of texts, got ['H100', 8]", 'gpu="H100:8"'),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_with_the_reason(wanted: object, message: str, fix: str) -> None:
    with pytest.raises(exception.InvalidError) as refused:
        gpu_types.requests(wanted)
    assert refused.value.message == message
    assert fix in refused.value.hint


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX-4080-SUPER"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", "RTX-3080"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-ADA"),
        ("NVIDIA TITAN RTX", "TITAN-RTX"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100-MIG-1G.10GB"),
        ("NVIDIA A100-SXM4-80GB MIG 1c.3g.40gb", "A100-MIG-1C.3G.40GB"),
    ],
)
def test_a_device_goes_by_a_name_that_requests_can_use(name: str, kind: str) -> None:
    assert gpu_types.type_of(name) == kind
    assert gpu_types.requests(kind) == (GpuRequest(kind),)
