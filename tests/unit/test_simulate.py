from collections import Counter

import numpy as np
import pytest

from infra.errors import UserError
from streams.simulate import START_MS, Change, Stream, concepts, parse_change, simulate
from streams.task import load_task

DAY_MS = 86_400_000


@pytest.mark.parametrize("name", ["transactions", "clicks"])
def test_equal_arguments_give_equal_streams_and_other_seeds_others(name: str) -> None:
    changes = (parse_change("gradual@0.3"), parse_change("pattern@0.6"))
    one, same = (simulate(name, seed=4, events=300, changes=changes) for _ in range(2))
    other = simulate(name, seed=5, events=300, changes=changes)
    assert list(one.items()) == list(same.items())
    assert list(one.items()) == list(one.items())
    assert list(one.items()) != list(other.items())
    assert one.identity == same.identity != other.identity


@pytest.mark.parametrize(
    ("name", "first_id", "fields"),
    [
        (
            "transactions",
            "tx-7-0",
            ["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"],
        ),
        (
            "clicks",
            "imp-7-0",
            [
                "event_id",
                "timestamp",
                "user_id",
                "item_id",
                "position",
                *(f"user_feature_{k}" for k in range(4)),
            ],
        ),
    ],
)
def test_items_are_what_the_built_in_task_declares(name: str, first_id: str, fields: list[str]) -> None:
    task = load_task(name)
    simulation = simulate(name, seed=7, events=500)
    items = list(simulation.items())
    events = [item for item in items if item.kind == "event"]
    labels = [item for item in items if item.kind == "label"]
    assert len(items) == simulation.total
    assert len(events) == simulation.events == 500
    assert [item.time_ms for item in items] == sorted(item.time_ms for item in items)

    value = events[0].value
    assert isinstance(value, dict)
    assert list(value) == fields
    assert set(value) == set(task.allowed)
    assert value[task.event.id] == first_id
    assert events[0].key == str(value[task.event.key])
    stamp = np.datetime64(value[task.event.time].removesuffix("Z"))
    assert stamp.astype("datetime64[ms]").astype(int) == events[0].time_ms
    assert events[0].time_ms >= START_MS
    assert simulation.span_ms == events[-1].time_ms - START_MS

    by_id = {item.value[task.event.id]: item for item in events if isinstance(item.value, dict)}
    for label in labels:
        assert isinstance(label.value, dict)
        assert set(label.value) == {task.label.id, task.label.field}
        event = by_id[label.value[task.label.id]]
        assert label.key == event.key
        assert 0 <= label.time_ms - event.time_ms < task.label.window_ms


def test_transactions_keep_the_handbook_s_proportions_at_a_small_scale() -> None:
    simulation = simulate("transactions", seed=1, events=40_000)
    stream = simulation.stream
    assert 75 < simulation.span_ms / DAY_MS < 105
    assert 0.006 < simulation.truth().mean() < 0.012  # 0.84 % in the Handbook
    amounts = stream.columns["TX_AMOUNT"]
    assert amounts.min() >= 0
    assert (simulation.truth()[amounts > 1100] == 1).all()  # scenario 1 or 3; no genuine amount comes near
    customers = len(np.unique(stream.columns["CUSTOMER_ID"]))
    terminals = len(np.unique(stream.columns["TERMINAL_ID"]))
    assert 1.7 < terminals / customers <= 2.1
    second = stream.times_ms % DAY_MS / 1000
    assert abs(second.mean() - 43_200) < 500
    assert 16_000 < second.std() < 20_000  # a normal of 20,000 s, cut at midnight
    assert (stream.known_ms - stream.times_ms == 7 * DAY_MS).all()
    assert len(stream.labels) == 40_000


def test_terminals_stay_compromised_for_28_days() -> None:
    stream = simulate("transactions", seed=2, events=60_000).stream
    genuine_amount = stream.columns["TX_AMOUNT"] <= 220
    fraud = (stream.truth == 1) & genuine_amount
    days = stream.times_ms // DAY_MS
    frauds = Counter(stream.columns["TERMINAL_ID"][fraud].tolist())
    spans = [np.ptp(days[fraud & (stream.columns["TERMINAL_ID"] == t)]) for t, n in frauds.items() if n > 10]
    assert len(spans) > 5
    assert 20 < np.median(spans) < 28
    assert max(spans) < 60  # unless it is compromised twice


@pytest.mark.parametrize("events", [1, 2, 37, 2_000])
@pytest.mark.parametrize("name", ["transactions", "clicks"])
def test_any_number_of_events_is_made(name: str, events: int) -> None:
    changes = [parse_change(f"{kind}@0.5") for kind in ("sudden", "gradual", "recurring", "pattern", "unit")]
    simulation = simulate(name, seed=3, events=events, changes=changes)
    assert sum(item.kind == "event" for item in simulation.items()) == events
    assert len(simulation.truth()) == events
    assert ((simulation.truth() >= 0) & (simulation.truth() <= 1)).all()


@pytest.mark.parametrize("kind", ["sudden", "gradual", "unit"])
@pytest.mark.parametrize("name", ["transactions", "clicks"])
def test_up_to_its_change_a_stream_is_as_without_it(name: str, kind: str) -> None:
    plain = [i for i in simulate(name, seed=6, events=3_000).items() if i.kind == "event"]
    drifted = [
        i
        for i in simulate(name, seed=6, events=3_000, changes=[Change(kind, 0.7)]).items()
        if i.kind == "event"
    ]
    assert plain[:1_800] == drifted[:1_800]
    assert simulate(name, seed=6, events=3_000).truth()[:1_800].tolist() == (
        simulate(name, seed=6, events=3_000, changes=[Change(kind, 0.7)]).truth()[:1_800].tolist()
    )


def test_after_a_sudden_change_fraud_contradicts_what_was_true() -> None:
    simulation = simulate("transactions", seed=1, events=40_000, changes=[parse_change("sudden@0.5")])
    stream, fraud = simulation.stream, simulation.truth() == 1
    middle = START_MS + simulation.span_ms // 2
    before, after = stream.times_ms < middle - 2 * DAY_MS, stream.times_ms > middle + 2 * DAY_MS
    amount, hour = stream.columns["TX_AMOUNT"], stream.times_ms % DAY_MS / 3_600_000
    assert fraud[before].mean() == pytest.approx(fraud[after].mean(), rel=0.5)
    assert fraud[before & (amount > 300)].mean() > 0.9
    assert fraud[after & (amount > 300)].mean() == 0  # what gave fraud away is genuine now
    assert fraud[after & (amount < 3) & (hour > 20)].mean() > 0.5
    assert fraud[before & (amount < 3) & (hour > 20)].mean() < 0.1
    bad = stream.columns["TERMINAL_ID"]
    hit_before = {t for t, n in Counter(bad[before & fraud].tolist()).items() if n > 8}
    assert len(hit_before) > 3
    still = fraud[after & np.isin(bad, list(hit_before))].mean()
    assert still < 0.05  # their terminals are clean


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by ranks; scores without ties."""
    rank = np.argsort(np.argsort(score)) + 1
    positives = label.sum()
    return float(
        (rank[label == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))
    )


def crossed_rates(stream: Stream, rows: np.ndarray, clicked: np.ndarray) -> np.ndarray:
    """Smoothed click rate of each (item, user_feature_0), learned from `rows`, for every event."""
    item = np.unique(stream.columns["item_id"].astype(str), return_inverse=True)[1]
    group = np.unique(stream.columns["user_feature_0"].astype(str), return_inverse=True)[1]
    cell = item * 16 + group
    shown = np.bincount(cell[rows], minlength=cell.max() + 1)
    clicks = np.bincount(cell[rows], clicked[rows], minlength=cell.max() + 1)
    rate = ((clicks + 1) / (shown + 10))[cell]
    untied: np.ndarray = rate + np.random.default_rng(0).random(len(rate)) * 1e-9
    return untied


def test_clicks_can_be_learned_and_a_sudden_change_makes_the_old_knowledge_worse_than_none() -> None:
    n = 20_000
    simulation = simulate("clicks", seed=1, events=n, changes=[parse_change("sudden@0.5")])
    stream, truth = simulation.stream, simulation.truth()
    clicked = np.zeros(n)
    clicked[stream.labelled] = 1
    assert truth.mean() == pytest.approx(0.10, abs=0.03)
    assert clicked.mean() == pytest.approx(truth.mean(), abs=0.01)
    assert auc(clicked, truth) > 0.8  # the best that anyone can do
    rows, fraction = np.arange(n), (stream.times_ms - START_MS) / DAY_MS
    first, second = rows[fraction < 0.3], rows[(fraction > 0.5) & (fraction < 0.7)]
    before, after = rows[(fraction > 0.3) & (fraction < 0.5)], rows[fraction > 0.7]
    old, new = crossed_rates(stream, first, clicked), crossed_rates(stream, second, clicked)
    assert auc(clicked[before], old[before]) > 0.70
    assert auc(clicked[after], old[after]) < 0.50
    assert auc(clicked[after], new[after]) > 0.70


def test_a_click_pattern_brings_new_items_and_kills_old_ones() -> None:
    simulation = simulate("clicks", seed=1, events=10_000, changes=[parse_change("pattern@0.5")])
    stream, truth = simulation.stream, simulation.truth()
    after = stream.times_ms >= START_MS + DAY_MS // 2
    item = stream.columns["item_id"]
    fresh = ~np.isin(item, np.unique(item[~after].astype(str)))
    assert 0.2 < fresh[after].mean() < 0.3
    assert truth[fresh].mean() > 1.5 * truth[~after].mean()
    known = np.unique(item[~after].astype(str))
    fell = [truth[after & (item == i)].mean() < 0.4 * truth[~after & (item == i)].mean() for i in known]
    assert 0.2 < np.mean(fell) < 0.5  # one group of three


def test_a_fraud_pattern_is_bursts_of_small_amounts_at_fresh_terminals_at_night() -> None:
    simulation = simulate("transactions", seed=1, events=30_000, changes=[parse_change("pattern@0.5")])
    stream = simulation.stream
    after = stream.times_ms > START_MS + 0.5 * simulation.span_ms
    terminal = stream.columns["TERMINAL_ID"]
    customers = stream.columns["CUSTOMER_ID"].max() + 1
    fresh = terminal >= 2 * customers
    assert not fresh[~after].any()
    assert 0.003 < fresh[after].mean() < 0.02
    assert (simulation.truth()[fresh] == 1).all()
    assert stream.columns["TX_AMOUNT"][fresh].max() <= 5
    hour = stream.times_ms[fresh] % DAY_MS / 3_600_000
    assert ((hour >= 1) & (hour <= 4)).all()
    bursts = Counter(zip(stream.columns["CUSTOMER_ID"][fresh], stream.times_ms[fresh] // DAY_MS, strict=True))
    assert np.median(list(bursts.values())) >= 8


def test_a_unit_changes_and_the_truth_does_not() -> None:
    plain = simulate("transactions", seed=1, events=2_000)
    cents = simulate("transactions", seed=1, events=2_000, changes=[parse_change("unit@0.5:0.8")])
    ratio = (
        cents.stream.columns["TX_AMOUNT"][plain.stream.columns["TX_AMOUNT"] > 0]
        / (plain.stream.columns["TX_AMOUNT"][plain.stream.columns["TX_AMOUNT"] > 0])
    )
    assert set(ratio.round(6)) == {1, 100}
    assert 0.25 < (ratio > 50).mean() < 0.35
    assert ratio[-1] == 1
    assert plain.truth().tolist() == cents.truth().tolist()
    tens = simulate("clicks", seed=1, events=2_000, changes=[parse_change("unit@0.5")]).stream.columns[
        "position"
    ]
    assert set(tens[:500].tolist()) == {1, 2, 3, 4, 5}
    assert set(tens[-500:].tolist()) == {0, 10, 20, 30, 40}


def active(text: str, *fractions: float) -> list[float]:
    return list(parse_change(text).active(np.array(fractions)))


def test_when_a_change_is_active() -> None:
    assert active("sudden@0.5", 0.0, 0.49, 0.5, 1.0) == [0, 0, 1, 1]
    assert active("pattern@0.5:0.6", 0.49, 0.5, 0.6) == [0, 1, 0]
    assert active("gradual@0.4:0.6", 0.4, 0.5, 0.6, 1.0) == pytest.approx([0, 0.5, 1, 1])
    assert active("gradual@0.4", 0.5, 0.7) == pytest.approx([0.5, 1])
    assert active("gradual@0.9", 0.95, 1.0) == pytest.approx([0.5, 1])
    assert active("recurring@0.25", 0.2, 0.3, 0.6, 0.8) == [0, 1, 0, 1]
    assert active("recurring@0.25:0.7", 0.3, 0.6, 0.8) == [1, 0, 0]


def test_the_later_of_two_concept_changes_counts() -> None:
    changes = [parse_change("sudden@0.2"), parse_change("unit@0.1"), parse_change("sudden@0.6")]
    assert concepts(changes, np.array([0.1, 0.3, 0.7]), np.random.default_rng(0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text", ["sudden@0.5", "gradual@0.25:0.75", "recurring@0.1", "pattern@0.3:1", "unit@0.9"]
)
def test_a_change_reads_back_as_it_is_written(text: str) -> None:
    assert str(parse_change(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sudden",
        "sudden@",
        "sudden@x",
        "sudden@0",
        "sudden@1",
        "sudden@1.5",
        "sudden@-0.1",
        "sudden@nan",
        "abrupt@0.5",
        "sudden@0.5:0.4",
        "sudden@0.5:0.5",
        "sudden@0.5:1.1",
        "sudden@0.2:0.4:0.6",
    ],
)
def test_a_wrong_change_is_refused_with_the_kinds(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_change(text)
    assert repr(text) in error.value.message
    assert "sudden, gradual, recurring, pattern, unit" in error.value.fix


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match=r"no simulator for 'weather'[\s\S]*clicks, transactions"):
        simulate("weather", seed=1, events=10)
    with pytest.raises(UserError, match="0 events"):
        simulate("clicks", seed=1, events=0)
