"""An NVIDIA GPU under PyTorch, ready to be measured.

Written without a GPU at hand: the ops run on a CPU in the tests, the CUDA graph and its events have not been run.
"""

from __future__ import annotations

from functools import partial

from haq.errors import InputError
from haq.measure import grid
from haq.measure.chain import Case
from haq.measure.cuda_profile import cuda_document, cuda_later
from haq.measure.device import Device, Streams, free_rates

FLOATS = ("fp32", "tf32", "fp16", "bf16")
LEAST_INT8_ROWS = 17
"""torch._int_mm takes more than 16 rows."""


def cuda(threads: int | None) -> Device:
    """The first GPU; raises InputError where PyTorch sees none, or for a number of threads, of which it has no say."""
    import torch  # two seconds and 200 MB that measuring a CPU does not need

    from haq.measure.torch_run import ready

    if threads is not None:
        raise InputError("a GPU takes no number of threads", where="--threads", got=threads, way_out="leave it out")
    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA device", where="--device", got=f"torch {torch.__version__} without a usable GPU",
            expected="an NVIDIA GPU that torch.cuda sees", way_out="--device cpu measures the CPU",
        )  # fmt: skip
    found = torch.cuda.get_device_properties(0)
    runtime = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    return Device(
        title=found.name,
        runtime=runtime,
        cases=cuda_cases(),
        streams=Streams(grid.large_streams(), (), grid.smallest()),
        ready=partial(ready, device="cuda"),
        document=partial(cuda_document, found.name, runtime, found.multi_processor_count, found.total_memory),
        free=free_rates,
        later=cuda_later,
        options={"tf32": "tf32"},
    )


def cuda_cases() -> tuple[Case, ...]:
    """The grid in every float format, linear layers in int8, and changes between fp32 and fp16."""
    floats = (case for fmt in FLOATS for case in grid.cases(fmt))
    return (*floats, *grid.linear_cases("int8", LEAST_INT8_ROWS), *grid.convert_cases("fp32", "fp16"))
