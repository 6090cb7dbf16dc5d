from ganflow.models.game import option


def test_an_option_carries_what_the_parameters_check() -> None:
    declared = option(3, "How many.", ge=1, le=5)
    assert declared.default == 3
    assert dict(declared.metadata) == {"description": "How many.", "ge": 1, "le": 5}
