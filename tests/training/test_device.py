import pytest
import torch

from ganflow.errors import UserError
from ganflow.training.device import pick_device


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> set[str]:
    """The accelerators that torch is made to find."""
    present: set[str] = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    return present


@pytest.mark.parametrize(
    ("found", "expected"),
    [(set(), "cpu"), ({"mps"}, "mps"), ({"cuda"}, "cuda"), ({"cuda", "mps"}, "cuda")],
    indirect=["found"],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(found: set[str], expected: str) -> None:
    assert pick_device("auto").type == expected


@pytest.mark.parametrize("found", [set(), {"cuda"}, {"mps"}, {"cuda", "mps"}], indirect=True)
def test_a_device_by_name_is_taken_or_refused(found: set[str]) -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("cuda", "mps"):
        if name in found:
            assert pick_device(name).type == name
        else:
            there = ", ".join(device for device in ("cuda", "mps", "cpu") if device in {*found, "cpu"})
            with pytest.raises(UserError, match=f"^train.device: torch finds no {name} device here, only {there}; "):
                pick_device(name)
