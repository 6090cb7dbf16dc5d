from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ganflow.data import batches as module
from ganflow.data.batches import Batches
from ganflow.data.images import Images
from ganflow.models.game import Batch

CPU = torch.device("cpu")


def numbered(n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures whose first pixel is their number, with labels of ten times that."""
    images = np.zeros((n, 1, 8, 8), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return images, np.arange(n) * 10


def numbers(batch: Batch) -> list[int]:
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def test_floats_in_minus_one_to_one_with_their_labels() -> None:
    images, labels = numbered(256)
    batch = Batches(images, labels, 256, 0, CPU).batch(0)
    assert batch.images.shape == (256, 1, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    first = batch.images[:, 0, 0, 0]
    assert (first.min().item(), first.max().item()) == (-1.0, 1.0)
    assert (batch.labels // 10).tolist() == numbers(batch)


def test_without_labels() -> None:
    assert Batches(numbered(9)[0], None, 4, 0, CPU).batch(0).labels is None


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), size=st.integers(2, 70), seed=st.integers(0, 3), start=st.integers(0, 90))
def test_the_stream_is_made_of_whole_epochs_however_it_is_cut(n: int, size: int, seed: int, start: int) -> None:
    images, labels = numbered(n)
    whole = numbers(Batches(images, labels, n * 10, seed, CPU).batch(0))
    for epoch in range(10):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))
    piece = Batches(images, labels, size, seed, CPU).batch(start)
    expected = (whole * 20)[start : start + size] if start + size <= 10 * n else None
    if expected is not None:
        assert numbers(piece) == expected
    assert (piece.labels // 10).tolist() == numbers(piece)


def test_batches_do_not_depend_on_those_before_them() -> None:
    images, labels = numbered(50)
    used = Batches(images, labels, 16, 7, CPU)
    for position in range(0, 400, 16):
        used.batch(position)
    for position in (0, 48, 1000):
        assert numbers(used.batch(position)) == numbers(Batches(images, labels, 16, 7, CPU).batch(position))


def test_seeds_and_epochs_differ() -> None:
    images, labels = numbered(50)
    orders = {tuple(numbers(Batches(images, labels, 50, seed, CPU).batch(p))) for seed in (0, 1) for p in (0, 50)}
    assert len(orders) == 4


def test_the_order_of_an_epoch_never_changes() -> None:
    assert numbers(Batches(*numbered(10), 10, 0, CPU).batch(10)) == [9, 1, 3, 8, 7, 6, 0, 4, 2, 5]


def test_only_the_epochs_in_use_are_kept() -> None:
    batches = Batches(*numbered(10), 4, 0, CPU)
    for position in range(0, 1000, 4):
        batches.batch(position)
    assert len(batches._order._epochs) <= 2


def test_data_on_the_device_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = numbered(50)
    mapped = Batches(images, labels, 16, 0, CPU)
    monkeypatch.setattr(module, "_fits", lambda nbytes, device: True)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)  # 15 pictures at a time
    resident = Batches(images, labels, 16, 0, CPU)
    assert resident._resident is not None
    for position in (0, 40, 96):
        assert torch.equal(mapped.batch(position).images, resident.batch(position).images)
        assert torch.equal(mapped.batch(position).labels, resident.batch(position).labels)


def test_the_next_batch_is_gathered_while_the_last_one_is_in_use() -> None:
    images, labels = numbered(50)
    batches = Batches(images, labels, 16, 0, CPU)
    batches.batch(0)
    expected, future = batches._ahead._ahead
    assert expected == 16
    future.result()
    images[:] = 255  # it has been read by now
    batch = batches.batch(16)
    assert numbers(batch) == (batch.labels // 10).tolist()


def test_waiting_is_counted_where_pictures_are_not_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = Batches(*numbered(50), 16, 0, CPU)
    assert mapped.waited == 0
    mapped.batch(0)
    assert mapped.waited > 0
    monkeypatch.setattr(module, "_fits", lambda nbytes, device: True)
    resident = Batches(*numbered(50), 16, 0, CPU)
    resident.batch(0)
    assert resident.waited == 0


def test_shards_give_the_same() -> None:
    images, labels = numbered(50)
    whole = Batches(images, labels, 16, 3, CPU)
    cut = Batches(Images([images[start : start + 12] for start in range(0, 50, 12)]), labels, 16, 3, CPU)
    for position in (0, 16, 40, 96):
        assert torch.equal(whole.batch(position).images, cut.batch(position).images)
        assert torch.equal(whole.batch(position).labels, cut.batch(position).labels)


def test_a_read_only_map_gives_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    images, _ = numbered(20)
    np.save(tmp_path / "a.npy", images)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert len(set(numbers(Batches(mapped, None, 20, 0, CPU).batch(0)))) == 20
    assert not recwarn.list


def test_no_pictures() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        Batches(np.zeros((0, 1, 8, 8), np.uint8), None, 4, 0, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_gives_the_same_as_the_cpu(monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    monkeypatch.setattr(module, "_fits", lambda nbytes, device: resident)
    images, labels = numbered(200)
    device = torch.device("cuda")
    there, here = Batches(images, labels, 64, 0, device), Batches(images, labels, 64, 0, CPU)
    for position in range(0, 1000, 64):
        batch = there.batch(position)
        assert batch.images.device.type == batch.labels.device.type == "cuda"
        torch.testing.assert_close(batch.images.cpu(), here.batch(position).images)
        assert torch.equal(batch.labels.cpu(), here.batch(position).labels)
