"""GPUs of this machine."""

from __future__ import annotations

import os


def gpus() -> list[str]:
    """CUDA devices of this process, by the names that CUDA_VISIBLE_DEVICES takes; none without a driver."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name and name != "-1"]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
