import json
from dataclasses import replace

import pytest

from ganflow.evaluation.protocol import Protocol

PROTOCOL = Protocol(
    extractor="classifier",
    extractor_digest="sha256:1",
    feature_dimension=64,
    resize="none",
    quantisation="uint8",
    split="test",
    reals=500,
    fakes=500,
    data_digest="sha256:2",
    seed=0,
    code_version="0.1.0",
)


def test_survives_json_with_further_keys() -> None:
    tree = json.loads(json.dumps({**PROTOCOL.to_dict(), "digest": PROTOCOL.digest}))

    read = Protocol.from_dict(tree)
    assert read == PROTOCOL
    assert read.comparable(PROTOCOL)


@pytest.mark.parametrize("field", PROTOCOL.to_dict())
def test_every_field_counts(field: str) -> None:
    value = getattr(PROTOCOL, field)
    other = replace(PROTOCOL, **{field: value + (1 if isinstance(value, int) else "x")})

    assert not PROTOCOL.comparable(other)
    assert PROTOCOL.differences(other) == [field]
    assert PROTOCOL.digest != other.digest


def test_equal_protocols_are_comparable() -> None:
    assert PROTOCOL.comparable(replace(PROTOCOL))
    assert PROTOCOL.digest == replace(PROTOCOL).digest


def test_rejects_a_tree_that_is_no_protocol() -> None:
    tree = PROTOCOL.to_dict()
    with pytest.raises(ValueError, match="needs extractor"):
        Protocol.from_dict({})
    with pytest.raises(ValueError, match="reals cannot be '500'"):
        Protocol.from_dict({**tree, "reals": "500"})
