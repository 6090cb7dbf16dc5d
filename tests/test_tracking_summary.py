"""Mean and deviation over seeds: on plain values, and from a real store."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from ganflow import params
from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.params import Params
from ganflow.tracking import evaluations, runs, store, summary
from ganflow.tracking.summary import EvaluatedRun, Statistic, configurations, render, round_together, select

PROTOCOL = Protocol(**{field.name: 500 if field.type is int else "some" for field in dataclasses.fields(Protocol)})


def plain(
    seed: int, started: int = 0, *, tags: dict[str, str] | None = None, fid: float = 9.0, **changes: str
) -> EvaluatedRun:
    """A run as plain values; `train__images="5"` changes the parameter train.images."""
    tree = params.dump(params.parse({"seed": seed, "model": {"family": "dcgan"}}))
    logged = runs.flat({section: tree[section] for section in tree if section != "register"})
    logged |= {key.replace("__", "."): value for key, value in changes.items()}
    own = {"ganflow.protocol": "sha256:0123456789", "ganflow.data_digest": "sha256:d", "mlflow.user": f"user {seed}"}
    return EvaluatedRun(
        run_id=f"run-{seed}-{started}",
        started=started,
        params=logged,
        tags=own | (tags or {}),
        metrics={"evaluate/fid": fid},
    )


def with_metrics(run: EvaluatedRun, **metrics: float) -> EvaluatedRun:
    return dataclasses.replace(run, metrics={f"evaluate/{name}": value for name, value in metrics.items()})


# Statistics


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_mean_and_deviation_are_numpys(values: list[float]) -> None:
    statistic = Statistic(dict(enumerate(values)))
    assert statistic.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert statistic.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)


def test_mean_and_deviation_by_hand() -> None:
    statistic = Statistic({0: 2.0, 1: 4.0, 2: 9.0})
    assert (statistic.mean, statistic.deviation) == (5.0, 13.0**0.5)  # (9 + 1 + 16) / 2


def test_a_single_value_has_no_deviation() -> None:
    assert (Statistic({7: 3.5}).mean, Statistic({7: 3.5}).deviation) == (3.5, None)


@pytest.mark.parametrize(
    ("mean", "deviation", "written"),
    [
        (231.34, 27.41, ("231", "27")),
        (6.9412, 0.3449, ("6.94", "0.34")),
        (0.74074, 0.0924501, ("0.741", "0.092")),
        (0.5, 0.0996, ("0.50", "0.10")),  # rounds up to a further digit
        (9.0, 9.96, ("9", "10")),
        (1234.5, 123.4, ("1230", "120")),
        (1e6 + 51, 999.0, ("1000100", "1000")),
        (-0.001, 0.5, ("0.00", "0.50")),
        (1.5e-5, 2.5e-6, ("0.0000150", "0.0000025")),
        (0.90102, 0.0, ("0.9010", "0")),
        (504.0, 0.0, ("504", "0")),
        (205.1660, None, ("205.2", None)),
        (9.99996, None, ("10.00", None)),
        (12345.6, None, ("12346", None)),
        (10000.0, None, ("10000", None)),
        (0.00012346, None, ("0.0001235", None)),
        (0.0, None, ("0", None)),
    ],
)
def test_rounding_by_hand(mean: float, deviation: float | None, written: tuple[str, str | None]) -> None:
    assert round_together(mean, deviation) == written


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_rounding_keeps_two_digits_of_the_deviation_and_the_place(mean: float, deviation: float) -> None:
    shown_mean, shown = round_together(mean, deviation)
    assert shown is not None
    place = Decimal(f"{deviation:.1e}").as_tuple().exponent
    unit = Decimal(1).scaleb(int(place))
    assert Decimal(shown) / unit in range(10, 100)
    for text, value in ((shown_mean, mean), (shown, deviation)):
        assert Decimal(text) % unit == 0
        assert abs(Decimal(text) - Decimal(value)) <= unit / 2


# Configurations


def test_seeds_are_one_configuration_however_they_come() -> None:
    values = {0: 9.5, 10: 7.25, 2: 8.0}
    (found,) = configurations([plain(seed, started, fid=fid) for started, (seed, fid) in enumerate(values.items())])
    assert list(found.runs) == [0, 2, 10]
    assert found.repeated == 0
    assert found.label == "digits-16px-dcgan"
    assert "seed" not in found.params
    statistic = found.statistics["evaluate/fid"]
    assert statistic.mean == pytest.approx(np.mean(list(values.values())))
    assert statistic.deviation == pytest.approx(np.std(list(values.values()), ddof=1))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_latest_run_of_a_seed_counts(order: Iterable[int]) -> None:
    given_runs = [plain(0, 10, fid=1.0), plain(0, 30, fid=3.0), plain(0, 20, fid=2.0), plain(1, 5, fid=5.0)]
    (found,) = configurations([given_runs[index] for index in order])
    assert found.statistics["evaluate/fid"].values == {0: 3.0, 1: 5.0}
    assert found.repeated == 2


@pytest.mark.parametrize(
    "other",
    [
        plain(1, 1, tags={"ganflow.protocol": "sha256:other"}),
        plain(1, 1, tags={"ganflow.data_digest": "sha256:other"}),
        plain(1, 1, tags={"ganflow.resumed_from_images": "5"}),
        plain(1, 1, evaluate__checkpoint="best"),
        plain(1, 1, train__images="5"),
        plain(1, 1, evaluate__images="5"),
        plain(1, 1, data__seed="5"),
        plain(1, 1, model__width="5"),
        plain(1, 1, model__new="5"),
    ],
)
def test_what_can_change_a_number_splits(other: EvaluatedRun) -> None:
    assert [list(each.runs) for each in configurations([plain(0), other])] == [[0], [1]]


def test_what_cannot_change_a_number_does_not_split() -> None:
    other = plain(
        1,
        data__root="/elsewhere",
        train__device="cuda",
        train__sample_every_images="5",
        train__checkpoint_every_images="5",
        evaluate__inception_weights="/elsewhere",
        evaluate__batch_size="5",
        tracking__experiment="other",
    )
    (found,) = configurations([plain(0), other])
    assert list(found.runs) == [0, 1]
    assert not {key for key in found.params if other.params[key] != plain(0).params[key]}


def test_every_parameter_without_effect_is_one() -> None:
    assert set(plain(0).params) >= summary._WITHOUT_EFFECT


def test_a_metric_that_some_runs_lack_has_its_own_n() -> None:
    (found,) = configurations(
        [
            with_metrics(plain(0), fid=1.0, kid=0.5),
            with_metrics(plain(1), fid=2.0),
            with_metrics(plain(2), fid=4.0, kid=1.5),
        ]
    )
    assert found.statistics["evaluate/kid"].values == {0: 0.5, 2: 1.5}
    assert found.statistics["evaluate/kid"].deviation == pytest.approx(np.std([0.5, 1.5], ddof=1))
    assert len(found.statistics["evaluate/fid"].values) == 3


def test_the_newest_configuration_comes_last() -> None:
    first, second = plain(0, 1, train__images="1"), plain(0, 2, train__images="2")
    assert [each.params["train.images"] for each in configurations([second, first])] == ["1", "2"]
    again = plain(1, 3, train__images="1")
    assert [each.params["train.images"] for each in configurations([again, second, first])] == ["2", "1"]


# Selection


def test_selection_compares_values() -> None:
    given_runs = [
        plain(seed, train__beta1=beta, train__flip="True") for seed, beta in enumerate(["0.5", "1.0", "0.0002"])
    ]
    assert select(given_runs, []) == given_runs
    assert select(given_runs, ["train.beta1=1"]) == given_runs[1:2]
    assert select(given_runs, ["train.beta1=2e-4"]) == given_runs[2:]
    assert select(given_runs, ["train.flip=true", "seed=0"]) == given_runs[:1]
    assert select(given_runs, ["model.family=dcgan", "data.name="]) == given_runs


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (["train.images=7"], r"^-S train.images=7: no evaluated run has this; there is train.images=1, 2$"),
        (["seed=1", "train.images=1"], r"^-S seed=1 -S train.images=1: .* there is train.images=2$"),
        (
            ["train.imges=1"],
            r"^-S train.imges=1: .* train.imges is not a parameter of theirs; did you mean train.images\?",
        ),
        (["q=1"], r"q is not a parameter of theirs$"),
        (["train.images"], r"^-S train.images: must read key.path=value"),
    ],
)
def test_selection_of_nothing(conditions: list[str], said: str) -> None:
    given_runs = [plain(0, train__images="1"), plain(1, train__images="2")]
    with pytest.raises(UserError, match=said):
        select(given_runs, conditions)


# Text


def test_text_of_one_configuration() -> None:
    given_runs = [
        with_metrics(plain(0, 0), fid=6.2, auc=0.5, images=500),
        with_metrics(plain(1, 1), fid=7.1, images=500),
        with_metrics(plain(2, 2), fid=7.4, images=500),
        with_metrics(plain(2, 1), fid=99, images=500),
    ]
    assert render(configurations(given_runs)) == (
        "digits-16px-dcgan\n"
        "3 runs, seeds 0, 1, 2 (1 earlier of these seeds left out); protocol 01234567\n"
        "\n"
        "  metric             mean ± deviation  n\n"
        "  evaluate/auc     0.5000              1\n"
        "  evaluate/fid       6.90 ± 0.62       3\n"
        "  evaluate/images     500 ± 0          3"
    )


def headings(*given_runs: EvaluatedRun) -> list[str]:
    return [block.splitlines()[0] for block in render(configurations(given_runs)).split("\n\n")[::2]]


def test_headings_tell_what_differs_and_no_more() -> None:
    a = plain(0, 1, train__beta1="0.4", train__device="cpu")
    b = plain(0, 2, train__beta1="0.5", train__device="cuda", model__norm="batch")
    c = plain(1, 3, train__beta1="0.5", evaluate__checkpoint="best")
    assert headings(a, b, c) == [
        "digits-16px-dcgan evaluate.checkpoint=last train.beta1=0.4",
        "digits-16px-dcgan evaluate.checkpoint=last model.norm=batch train.beta1=0.5",
        "digits-16px-dcgan evaluate.checkpoint=best train.beta1=0.5",
    ]
    assert headings(a) == ["digits-16px-dcgan"]
    assert headings(plain(0, 1), plain(0, 2, data__name="flowers", model__family="vanilla")) == [
        "digits-16px-dcgan",
        "flowers-16px-vanilla",
    ]


def test_protocols_are_told_apart() -> None:
    lines = render(configurations([plain(0), plain(1, 1, tags={"ganflow.protocol": "sha256:ba98765432"})])).splitlines()
    assert [line for line in lines if "protocol" in line] == [
        "1 run, seed 0; protocol 01234567",
        "1 run, seed 1; protocol ba987654",
    ]


def test_caution_stands_beside_the_numbers(tmp_path: Path) -> None:
    careful = configurations([plain(0, tags={"ganflow.caution": "9 pictures are too few"}), plain(1, 1)])
    assert render(careful).count("\nCaution: 9 pictures are too few\n") == 1
    assert "Caution" not in render(configurations([plain(0, tags={"ganflow.caution": "none"})]))
    summary.write(tmp_path / "out.json", "mine", careful)
    tree = json.loads((tmp_path / "out.json").read_text())
    assert [each["caution"] for each in tree["configurations"]] == ["9 pictures are too few", "none"]


def test_text_is_at_most_100_columns_wide() -> None:
    many = {f"model__a_parameter_{index}": f"a-value-{index}" for index in range(20)}
    text = render(configurations([plain(0, 1), *(plain(seed, 2, **many) for seed in range(10_000, 10_100))]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "model.a_parameter_7=a-value-7" in text
    assert "10099; protocol" in " ".join(line.strip() for line in lines)


def test_json_holds_everything_unrounded(tmp_path: Path) -> None:
    values = {0: 6.123456789, 3: 7.987654321}
    given_runs = [plain(seed, seed, fid=fid) for seed, fid in values.items()]
    summary.write(tmp_path / "out.json", "mine", configurations(given_runs))
    tree = json.loads((tmp_path / "out.json").read_text())
    assert tree["experiment"] == "mine"
    (found,) = tree["configurations"]
    fid = found["metrics"]["evaluate/fid"]
    assert fid["values"] == {"0": 6.123456789, "3": 7.987654321}
    assert fid["n"] == 2
    assert fid["mean"] == pytest.approx(np.mean(list(values.values())), rel=1e-15)
    assert fid["deviation"] == pytest.approx(np.std(list(values.values()), ddof=1), rel=1e-12)
    assert found["params"]["train.batch_size"] == "64"
    assert not {"seed", "ganflow.protocol"} & set(found["params"])
    assert (found["protocol_digest"], found["data_digest"]) == ("sha256:0123456789", "sha256:d")
    assert found["runs"] == {"0": "run-0-0", "3": "run-3-3"}
    assert found["repeated_runs"] == 0


def test_json_of_a_single_run_has_no_deviation(tmp_path: Path) -> None:
    summary.write(tmp_path / "out.json", "mine", configurations([plain(0)]))
    (found,) = json.loads((tmp_path / "out.json").read_text())["configurations"]
    assert found["metrics"]["evaluate/fid"]["deviation"] is None


def test_json_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/out.json: cannot be written \(No such file"):
        summary.write(tmp_path / "nowhere" / "out.json", "mine", configurations([plain(0)]))


# The store


Log = Callable[..., str]


@pytest.fixture
def log(repository: Path, card: DataCard) -> Log:
    """Logs a training and its evaluation as the stages do, and gives the id of the run with the numbers."""

    def logged(
        seed: int,
        metrics: dict[str, Any],
        protocol: Protocol = PROTOCOL,
        changes: tuple[str, ...] = (),
        trained: str = "",
    ) -> str:
        made = _params(seed, *changes)
        folder = repository / "trained" / (trained or f"{len(list(repository.glob('trained/*')))}")
        if not folder.exists():
            folder.mkdir(parents=True)
            ref = runs.open_run(made, card)
            runs.write_run(folder, ref)
            _client().set_terminated(ref.run_id, "FINISHED")
        evaluated = repository / "evaluated"
        evaluated.mkdir(exist_ok=True)
        (evaluated / "metrics.json").write_text(json.dumps(metrics))
        (evaluated / "protocol.json").write_text(json.dumps(protocol.to_dict()))
        (evaluated / "measured.json").write_text(json.dumps({"images": 8}))
        return evaluations.log_evaluation(made, card, folder, evaluated).run_id

    return logged


def _params(seed: int, *changes: str) -> Params:
    return params.parse(params.override({"seed": seed, "model": {"family": "dcgan"}}, changes))


def _client() -> MlflowClient:
    return MlflowClient(store.tracking_uri())


def test_what_the_stages_log_is_found(log: Log) -> None:
    fids = {0: 9.5, 1: 7.0, 2: 8.25}
    for seed, fid in fids.items():
        log(seed, {"fid": fid, "kid": None if seed == 1 else fid / 8, "note": "text"})
    (found,) = configurations(summary.read_runs("ganflow"))
    assert list(found.runs) == [0, 1, 2]
    assert set(found.statistics) == {"evaluate/fid", "evaluate/kid"}
    assert found.statistics["evaluate/fid"].deviation == pytest.approx(np.std(list(fids.values()), ddof=1))
    assert list(found.statistics["evaluate/kid"].values) == [0, 2]
    assert found.identity["ganflow.protocol"] == PROTOCOL.digest


def test_repeated_and_changed_evaluations_of_one_training(log: Log, card: DataCard) -> None:
    """Each is the one number of its seed in its configuration, whichever run of MLflow's it lies in."""
    training = log(0, {"fid": 1.0}, trained="a")
    assert log(0, {"fid": 2.0}, trained="a") == training
    smaller = dataclasses.replace(PROTOCOL, fakes=100)
    assert log(0, {"fid": 3.0}, smaller, ("evaluate.images=100",), trained="a") != training
    assert log(0, {"fid": 4.0}, PROTOCOL, ("evaluate.batch_size=50",), trained="a") != training
    log(1, {"fid": 5.0}, smaller, ("evaluate.images=100",))
    found = {each.params["evaluate.images"]: each for each in configurations(summary.read_runs("ganflow"))}
    assert found["10000"].statistics["evaluate/fid"].values == {0: 4.0}
    assert found["10000"].repeated == 1
    assert found["100"].statistics["evaluate/fid"].values == {0: 3.0, 1: 5.0}


def test_a_changed_evaluation_of_a_resumed_training_is_one_of_it_too(log: Log) -> None:
    """Its parameters alone would not make these weights, whichever run of MLflow's the numbers lie in."""
    training = log(0, {"fid": 1.0}, trained="a")
    tags = {"ganflow.resumed_from": "other", "ganflow.resumed_from_images": "5"}
    for name, value in tags.items():
        _client().set_tag(training, name, value)
    changed = log(0, {"fid": 2.0}, PROTOCOL, ("evaluate.batch_size=50",), trained="a")
    assert changed != training
    assert tags.items() <= _client().get_run(changed).data.tags.items()
    log(1, {"fid": 3.0})
    resumed, plain = configurations(summary.read_runs("ganflow"))
    assert (list(resumed.runs), list(plain.runs)) == ([0], [1])
    assert resumed.statistics["evaluate/fid"].values == {0: 2.0}
    assert resumed.params["ganflow.resumed_from_images"] == "5"


def test_a_run_restored_from_outputs_counts(log: Log) -> None:
    training = log(0, {"fid": 1.0}, trained="a")
    _client().delete_run(training)
    restored = log(0, {"fid": 2.0}, trained="a")
    (found,) = configurations(summary.read_runs("ganflow"))
    assert {seed: run.run_id for seed, run in found.runs.items()} == {0: restored}


def test_numbers_of_two_protocols_are_kept_apart(log: Log) -> None:
    log(0, {"fid": 1.0})
    log(1, {"fid": 2.0}, dataclasses.replace(PROTOCOL, extractor_digest="sha256:other"))
    assert [list(each.runs) for each in configurations(summary.read_runs("ganflow"))] == [[0], [1]]


def test_best_fid_counts_and_no_other_value_of_the_training(log: Log) -> None:
    run_id = log(0, {"fid": 1.0})
    for step, value in enumerate([8.0, 4.0]):
        _client().log_metric(run_id, "train/best_fid", value, step=step)
    _client().log_metric(run_id, "train/generator_loss", 1.0)
    _client().log_metric(run_id, "evaluate/broken", float("nan"))
    (run,) = summary.read_runs("ganflow")
    assert run.metrics == {"evaluate/fid": 1.0, "train/best_fid": 4.0}


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED", "deleted", "unevaluated", "foreign", "sweep"])
def test_what_does_not_count(log: Log, card: DataCard, status: str) -> None:
    kept, other = log(0, {"fid": 1.0}), log(1, {} if status == "unevaluated" else {"fid": 2.0})
    if status in {"RUNNING", "FAILED", "KILLED"}:
        _client().update_run(other, status=status)
    elif status == "deleted":
        _client().delete_run(other)
    elif status == "foreign":
        _client().delete_tag(other, "ganflow.protocol")
    elif status == "sweep":
        _client().set_tag(other, "ganflow.kind", "sweep")
    else:
        _client().log_metric(other, "train/best_fid", 1.0)
    assert [run.run_id for run in summary.read_runs("ganflow")] == [kept]


@pytest.mark.parametrize("page", [1, 2, 5, 6])
def test_more_runs_than_a_page(log: Log, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = [log(seed, {"fid": seed}) for seed in range(5)]
    monkeypatch.setattr(summary, "_PAGE", page)
    assert [run.run_id for run in summary.read_runs("ganflow")] == logged


def test_without_a_store_none_is_made(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "mlflow.db").unlink()
    before = sorted(repository.rglob("*"))
    with pytest.raises(UserError, match=r"mlflow\.db: there is no such store of runs yet; run `make repro` first"):
        summary.read_runs("ganflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere/my.db")
    with pytest.raises(UserError, match=r"elsewhere/my\.db: there is no such store"):
        summary.read_runs("ganflow")
    assert sorted(repository.rglob("*")) == before


def test_without_an_experiment_none_is_made(repository: Path) -> None:
    _client().create_experiment("theirs")
    with pytest.raises(UserError, match=r"^experiment 'mine': is not in sqlite:.*, which has theirs, Default; choose"):
        summary.read_runs("mine")
    assert {found.name for found in _client().search_experiments()} == {"theirs", "Default"}


def test_deleted_experiment(log: Log) -> None:
    log(0, {"fid": 1.0})
    _client().delete_experiment("1")
    with pytest.raises(UserError, match=r"^experiment 'ganflow': was deleted in .* restore --experiment-id 1"):
        summary.read_runs("ganflow")


def test_experiment_without_an_evaluated_run(repository: Path, card: DataCard) -> None:
    runs.open_run(_params(0), card)
    with pytest.raises(UserError, match=r"^experiment 'ganflow' in sqlite:.*no finished run has the numbers"):
        summary.read_runs("ganflow")


def test_server_that_does_not_answer(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9: the MLflow server does not answer"):
        summary.read_runs("ganflow")


def test_store_in_a_folder_with_odd_letters(
    tmp_path: Path, mlflow_database: Path, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Zoë's 100%20 runs?"
    root.mkdir()
    (root / "params.yaml").touch()
    (root / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="experiment 'ganflow': is not in"):
        summary.read_runs("ganflow")
