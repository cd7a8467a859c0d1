"""[[features]] tables: what they mean, and what is said about those that mean nothing."""

from typing import Any

import pytest

from featurestore.spec import SpecError, parse_views


def parse(*tables: dict[str, Any]) -> Any:
    return parse_views(["customer", "terminal"], {"AMOUNT", "TIP"}, tables, ["SHOP", "TERMINAL"])


def test_columns_come_in_the_order_they_are_asked_for() -> None:
    views = parse(
        {"entity": "terminal", "windows": ["1d"], "aggregates": ["count"], "label_rate": ["7d"]},
        {"entity": "customer", "value": "AMOUNT", "windows": ["10m", "1d"], "aggregates": ["mean", "ratio"]},
        {
            "entity": "customer",
            "value": "TIP",
            "windows": ["10m"],
            "aggregates": ["max"],
            "time_since_last": True,
        },
    )
    assert list(views) == ["customer", "terminal"]
    assert views["customer"].columns == (
        "customer_AMOUNT_mean_10m",
        "customer_AMOUNT_ratio_10m",
        "customer_AMOUNT_mean_1d",
        "customer_AMOUNT_ratio_1d",
        "customer_TIP_max_10m",
        "customer_time_since_last",
    )
    assert views["customer"].values == ("AMOUNT", "TIP")
    assert views["customer"].longest_ms == 86_400_000
    assert not views["customer"].needs_labels
    assert views["terminal"].columns == ("terminal_count_1d", "terminal_label_rate_7d")
    assert views["terminal"].values == ()
    assert views["terminal"].needs_labels


def test_what_is_counted_decayed_and_kept_has_columns_too() -> None:
    view = parse(
        {"entity": "customer", "value": "SHOP", "windows": ["1h", "1d"], "aggregates": ["distinct"]},
        {"entity": "customer", "value": "TIP", "windows": ["1h"], "aggregates": ["distinct", "sum"]},
        {"entity": "customer", "value": "AMOUNT", "decay": ["30m", "9d"], "last": 2, "time_since_last": True},
    )["customer"]
    assert view.columns == (
        "customer_SHOP_distinct_1h",
        "customer_SHOP_distinct_1d",
        "customer_TIP_distinct_1h",
        "customer_TIP_sum_1h",
        "customer_time_since_last",
        "customer_AMOUNT_decayed_30m",
        "customer_AMOUNT_decayed_9d",
        "customer_AMOUNT_last_1",
        "customer_AMOUNT_last_2",
    )
    assert (view.values, view.hashed, view.sketched) == (("TIP", "AMOUNT"), ("SHOP",), ("SHOP", "TIP"))
    assert view.longest_ms == 86_400_000


def test_an_entity_without_features_has_no_view() -> None:
    assert list(parse({"entity": "terminal", "time_since_last": True})) == ["terminal"]


def test_the_fingerprint_follows_the_meaning() -> None:
    def fingerprint(**changes: Any) -> str:
        table = {
            "entity": "customer",
            "value": "AMOUNT",
            "windows": ["1d"],
            "aggregates": ["mean"],
            **changes,
        }
        found: str = parse(table)["customer"].fingerprint
        return found

    assert fingerprint() == fingerprint()
    others = [
        fingerprint(aggregates=["distinct"]),
        fingerprint(aggregates=["distinct"], value="SHOP"),
        fingerprint(decay=["1h"]),
        fingerprint(decay=["2h"]),
        fingerprint(last=1),
        fingerprint(last=2),
        fingerprint(windows=["2d"]),
        fingerprint(aggregates=["max"]),
        fingerprint(value="TIP"),
        fingerprint(time_since_last=True),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)


def test_the_fingerprint_of_what_has_not_changed_stays() -> None:
    # Models and snapshots of before these features came must go on: what they were made of is the same.
    table = {
        "entity": "customer",
        "value": "AMOUNT",
        "windows": ["1d"],
        "aggregates": ["mean", "std", "ratio"],
    }
    view = parse(table | {"time_since_last": True, "label_rate": ["7d"]})["customer"]
    assert view.fingerprint == "25d6c46452b40135db268f7875f7fd25"


FINE = {"entity": "customer", "windows": ["1d"], "aggregates": ["count"]}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"window": ["1d"]}, ("window",), 'unknown key "window"'),
        ({"entity": "shop"}, ("entity",), "not 'shop'"),
        ({"value": "CITY"}, ("value",), "'CITY' is not a number field"),
        ({"windows": "1d"}, ("windows",), "must be a list"),
        ({"windows": ["1d", "1d"]}, ("windows", 1), "listed twice"),
        ({"windows": ["1d", "soon"]}, ("windows", 1), "'soon' is not a duration"),
        ({"windows": ["0s"]}, ("windows", 0), "cannot be cut into 8 equal tiles"),
        ({"windows": ["500ms"]}, ("windows", 0), "cannot be cut into 8 equal tiles"),
        ({"windows": ["99999d"]}, ("windows", 0), "longer than ten years"),
        ({"windows": []}, (), "aggregates without windows"),
        ({"aggregates": []}, (), "windows without aggregates"),
        ({"aggregates": ["count", "median"]}, ("aggregates", 1), "unknown aggregate 'median'"),
        ({"aggregates": ["mean"]}, ("aggregates", 0), 'the aggregate "mean" needs a value'),
        ({"aggregates": [1]}, ("aggregates", 0), "unknown aggregate 1"),
        ({"aggregates": ["distinct"]}, ("aggregates", 0), 'the aggregate "distinct" needs a value'),
        ({"value": "SHOP"}, ("aggregates", 0), '"count" needs a number field, and SHOP is a category'),
        ({"decay": ["1h"]}, ("decay",), "decay needs a number field"),
        ({"decay": ["1h"], "value": "SHOP", "aggregates": ["distinct"]}, ("decay",), "decay needs a number"),
        ({"decay": ["0s"], "value": "TIP"}, ("decay", 0), "no time at all"),
        ({"decay": ["1h", "1h"], "value": "TIP"}, ("decay", 1), "listed twice"),
        ({"decay": "1h", "value": "TIP"}, ("decay",), "must be a list"),
        ({"decay": ["99999d"], "value": "TIP"}, ("decay", 0), 'a half-life of "99999d" is longer'),
        ({"last": 3}, ("last",), "last needs a number field"),
        ({"last": 33, "value": "TIP"}, ("last",), "from 1 to 32"),
        ({"last": 0, "value": "TIP"}, ("last",), "from 1 to 32"),
        ({"last": True, "value": "TIP"}, ("last",), "from 1 to 32"),
        ({"last": 2.0, "value": "TIP"}, ("last",), "from 1 to 32"),
        ({"time_since_last": "yes"}, ("time_since_last",), "must be true or false"),
        ({"label_rate": [7]}, ("label_rate", 0), "7 is not a duration"),
        ({"windows": [], "aggregates": []}, (), "asks for no feature"),
    ],
)
def test_a_wrong_table_is_named_with_its_key(
    changes: dict[str, Any], path: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        parse(FINE, {"entity": "terminal", "time_since_last": True}, {**FINE, **changes})
    assert message in caught.value.message
    assert caught.value.path == ("features", 2, *path)
    assert caught.value.fix


def test_the_same_feature_twice_is_an_error() -> None:
    with pytest.raises(SpecError, match="customer_count_1d is asked for twice"):
        parse(FINE, FINE)


def test_a_table_without_an_entity_is_an_error() -> None:
    with pytest.raises(SpecError, match="need the name of an entity"):
        parse({"windows": ["1d"], "aggregates": ["count"]})
