"""In which numbers the networks compute: float32, or bfloat16 where the processor multiplies it faster.

Weights, optimisers, averages and losses stay in float32 (Micikevicius et al. 2018, section 3.1). bfloat16 has
float32's range, so that losses need no scaling; float16, which would need it, cripples some GANs.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16"]


def pick_precision(name: Literal["auto", "float32", "bf16"], device: torch.device) -> Precision:
    """Turn `train.precision` into the one to compute in: auto takes bf16 where the hardware has it."""
    if name == "auto":
        return "bf16" if _multiplies_bf16(device) else "float32"
    return name


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Give a context in which matrix products and convolutions compute in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def answer_in_float32(network: nn.Module) -> None:
    """Let a network give float32 whatever it computes in: losses and penalties are not for bfloat16's 8 bits."""
    network.register_forward_hook(_in_float32)


def _in_float32(_network: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
