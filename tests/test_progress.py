import io
import sys

import pytest
import torch

from ganflow.progress import counted, progress


class Terminal(io.StringIO):
    def __init__(self, *, there: bool) -> None:
        super().__init__()
        self._there = there

    def isatty(self) -> bool:
        return self._there


def test_batches_pass_and_move_the_bar_by_their_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [torch.arange(3), torch.arange(2)]
    done: list[int] = []

    with progress(5, "reading", " pictures") as bar:
        for batch, original in zip(counted(batches, bar), batches, strict=True):
            assert batch is original
            done.append(bar.n)
        assert bar.n == 5

    assert done == [0, 3], "a batch counts when it is done with"
    shown = capsys.readouterr().err
    assert "reading: 100%" in shown
    assert "5/5" in shown


def test_batches_pass_one_at_a_time() -> None:
    taken: list[int] = []

    def source() -> object:
        for index in range(3):
            taken.append(index)
            yield torch.zeros(1)

    with progress(3, "reading", "") as bar:
        next(counted(source(), bar))  # type: ignore[arg-type]
        assert taken == [0]


def test_nothing_is_shown_where_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(0, "reading", " pictures") as bar:
        assert list(counted([], bar)) == []

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("there", "pause"), [(True, 0.5), (False, 30)])
def test_a_log_has_fewer_lines_than_a_terminal(there: bool, pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(there=there))
    with progress(1000, "train", "img") as bar:
        assert bar.mininterval == pause


def test_goes_on_from_what_is_done_and_writes_thousands(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(400_000, "train", "img", initial=200_000, scale=True) as bar:
        assert bar.n == 200_000
        bar.update(200_000)

    shown = capsys.readouterr().err
    assert "50%" in shown
    assert "200k/400k" in shown
    assert "img/s" in shown
