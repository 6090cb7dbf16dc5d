import json
from dataclasses import replace

import pytest

from ganflow.evaluation import inception
from ganflow.evaluation.protocol import Protocol

PROTOCOL = Protocol(
    extractor="classifier",
    extractor_digest="sha256:1",
    feature_dimension=64,
    resize="none",
    split="test",
    reals=500,
    fakes=500,
    compared=400,
    searched=2000,
    data_digest="sha256:2",
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


def test_an_earlier_protocol_is_no_protocol() -> None:
    tree = PROTOCOL.to_dict()
    del tree["searched"]
    with pytest.raises(ValueError, match="needs searched"):
        Protocol.from_dict({**tree, "seed": 0, "quantisation": "uint8"})


@pytest.mark.parametrize(("reals", "fakes", "cautioned"), [(64, 500, True), (500, 64, True), (65, 65, False)])
def test_no_more_pictures_than_features_is_said(reals: int, fakes: int, cautioned: bool) -> None:
    """The covariance of N vectors has the rank N - 1 at most: 65 are the fewest that can span 64 dimensions."""
    cautions = replace(PROTOCOL, reals=reals, fakes=fakes).cautions

    assert len(cautions) == cautioned
    assert all(note.startswith("64 pictures are too few for 64 features") for note in cautions)


def test_unknown_weights_are_said() -> None:
    assert PROTOCOL.cautions == ()
    unknown = replace(PROTOCOL, extractor=inception.name_of("sha256:" + "0" * 64))
    (note,) = unknown.cautions
    assert "cannot be compared with published ones" in note
    known = replace(PROTOCOL, extractor=inception.name_of("sha256:6726825d" + "0" * 56))
    assert known.cautions == ()
    assert len(replace(unknown, reals=64).cautions) == 2
