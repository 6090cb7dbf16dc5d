import pytest

from ganflow import params
from ganflow.errors import UserError
from ganflow.params import Params
from pipelines.sweeps import trials


@pytest.fixture
def base() -> Params:
    return params.parse({"model": {"family": "dcgan"}})


def test_every_combination_once(base: Params) -> None:
    assert trials(base, ["seed=1,2", "train.beta1=0.0,0.5"]) == [
        ["seed=1", "train.beta1=0.0"],
        ["seed=1", "train.beta1=0.5"],
        ["seed=2", "train.beta1=0.0"],
        ["seed=2", "train.beta1=0.5"],
    ]


def test_values_keep_their_types(base: Params) -> None:
    made = trials(base, ["train.flip=true,false", "model.loss=minimax", "train.generator_lr=1e-4"])
    loaded = params.parse(params.override(params.dump(base), made[0]))
    assert (loaded.train.flip, loaded.model.loss, loaded.train.generator_lr) == (True, "minimax", 1e-4)


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ("data.resolution=8,16", "only seed, model.* and train.* can be swept"),
        ("evaluate.images=100,200", "only seed, model.* and train.* can be swept"),
        ("model.family=vanilla,dcgan", "one family"),
        ("train.beta1", "must read key.path=value,value"),
        ("train.beta1=", "must read key.path=value,value"),
        ("train.beta1=0.1,7", "train.beta1: "),
        ("train.beta=0.1", "did you mean beta"),
        ("seed=[1", "not valid YAML"),
        ("seed=1,2,1", "has a value twice"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(base: Params, swept: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        trials(base, [swept])
    assert said in str(caught.value)


def test_a_key_that_is_given_twice(base: Params) -> None:
    with pytest.raises(UserError, match="--sweep seed: is given twice"):
        trials(base, ["seed=1", "train.beta1=0.5", "seed=2"])
