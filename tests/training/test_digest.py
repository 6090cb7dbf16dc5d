import hashlib

import numpy as np

from ganflow.training.digest import tensors_digest

ONE = np.array([[1, 2], [3, 4]], dtype=np.uint8)


def test_by_hand() -> None:
    expected = hashlib.sha256(b"one uint8 (2, 2)\n\x01\x02\x03\x04two uint8 ()\n\x05").hexdigest()
    assert tensors_digest([("one", ONE), ("two", np.array(5, dtype=np.uint8))]) == expected


def test_what_it_tells_apart() -> None:
    others = [("two", ONE), ("one", ONE.T), ("one", ONE.reshape(4)), ("one", ONE.view(np.int8))]
    digests = {tensors_digest([each]) for each in [("one", ONE), *others]}
    assert len(digests) == 5


def test_values_count_and_their_place_in_memory_does_not() -> None:
    assert tensors_digest([("one", np.asfortranarray(ONE))]) == tensors_digest([("one", ONE)])
