import pytest
import torch

from ganflow.training.precision import computing_in, pick_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("capabilities", "picked"),
    [
        ({"avx512_f": True}, "float32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "float32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_it(
    capabilities: dict[str, bool], picked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_precision("auto", CPU) == picked
    assert pick_precision("auto", MPS) == "float32"


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bf16_where_the_gpu_does_not_emulate_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert pick_precision("auto", CUDA) == ("bf16" if native else "float32")


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert pick_precision("bf16", CPU) == "bf16"
    assert pick_precision("float32", CPU) == "float32"


def test_products_are_those_of_rounded_factors() -> None:
    a, b = torch.full((1, 1), 1 + 2**-10), torch.ones(1, 1)  # the last bit of a does not fit into bfloat16
    with computing_in("bf16", CPU):
        assert (a @ b).item() == 1
    with computing_in("float32", CPU):
        assert (a @ b).item() == 1 + 2**-10
