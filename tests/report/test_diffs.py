"""What differs between two plans, also where one of them was edited and its figures were left behind."""

from __future__ import annotations

from lrexport.artifacts.plan_file import PlanFile
from lrexport.plan import Dense, Entry, Pair, PairChoice
from lrexport.report.diffs import Diff, diff_plans, diff_table, diff_to_json


def pair(rank: int, scheme: str = "spatial", size: int = 100) -> Pair:
    """A layer of ``size`` weights and 10 biases with 10 positions; a rank costs 20 weights, by channel 30."""
    weights = (20 if scheme == "spatial" else 30) * rank
    return Pair(
        scheme=scheme,
        rank=rank,
        full_rank=9,
        energy_kept=rank / 9,
        dense_macs=10 * size,
        macs=10 * weights,
        dense_params=size + 10,
        params=weights + 10,
        shape=(10, size // 10),
    )


DENSE = Dense(kind="kept", reason="as asked", dense_macs=1000, dense_params=110, shape=(10, 10))


def diff(before: dict[str, Entry], after: dict[str, Entry], edited: tuple[bool, bool] = (False, False)) -> Diff:
    return diff_plans(PlanFile(before, not edited[0]), PlanFile(after, not edited[1]))


def lines(found: Diff) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in diff_table(found, "a.json", "b").rows}


def test_every_kind_of_change_has_its_line_and_what_is_the_same_is_only_counted() -> None:
    before = {"same": pair(2), "rank": pair(2), "scheme": pair(2), "whole": pair(2), "split": DENSE, "gone": pair(1)}
    after = {**before, "rank": pair(3), "scheme": pair(2, "channel"), "whole": DENSE, "split": pair(4), "new": DENSE}
    del after["gone"]
    found = diff(before, after)
    assert lines(found) == {
        "rank": ("spatial 2/9", "spatial 3/9", "400 → 600", "1.50×"),
        "scheme": ("spatial 2/9", "channel 2/9", "400 → 600", "1.50×"),
        "whole": ("spatial 2/9", "dense", "400 → 1.00K", "2.50×"),
        "split": ("dense", "spatial 4/9", "1.00K → 800", "0.80×"),
        "gone": ("spatial 1/9", "missing", "200 → —", ""),
        "new": ("missing", "dense", "— → 1.00K", ""),
        "all layers": ("", "", "2.80K → 4.40K", "1.57×"),
    }
    caption = diff_table(found, "a.json", "b").caption
    assert caption == "From a.json to b: 1 layer is the same in both; parameters 340 → 500 (1.47×)."


def test_identical_plans_have_no_line() -> None:
    plan: dict[str, Entry] = {"a": pair(2), "b": DENSE}
    found = diff(plan, dict(plan))
    assert (found.layers, found.same) == ({}, 2)


def test_a_layer_of_another_size_differs_and_shows_its_weight() -> None:
    found = lines(diff({"a": pair(2)}, {"a": pair(2, size=200)}))
    assert found["a"] == ("spatial 2/9 of 10×10", "spatial 2/9 of 10×20", "400", "1.00×")


def test_energy_alone_is_no_difference() -> None:
    assert not diff({"a": pair(2)}, {"a": pair(2).model_copy(update={"energy_kept": 0.9})}).layers


def test_figures_that_an_edit_left_behind_are_worked_out_from_the_file_that_was_not_edited() -> None:
    edited = pair(2).model_copy(update={"rank": 6})
    for before in (pair(2), pair(3)):
        found = diff({"a": before, "b": DENSE}, {"a": edited, "b": DENSE}, (False, True))
        assert found.layers["a"][1].macs == pair(6).macs
        assert found.layers["a"][1].params == pair(6).params
        assert found.totals[1].macs == pair(6).macs + DENSE.dense_macs
    turned = diff({"a": edited}, {"a": pair(2)}, (True, False))
    assert turned.layers["a"][0].macs == pair(6).macs


def test_figures_by_hand_are_taken_from_the_other_file_where_they_follow_from_it() -> None:
    found = diff(
        {"a": pair(2), "b": pair(2), "c": DENSE}, {"a": PairChoice("spatial", 5), "b": "dense", "c": "dense"}, (False, True)
    )
    assert lines(found)["a"] == ("spatial 2/9", "spatial 5/9", "400 → 1.00K", "2.50×")
    assert lines(found)["b"] == ("spatial 2/9", "dense", "400 → 1.00K", "2.50×")
    assert "c" not in found.layers
    assert found.totals[1].params == pair(5).params + 110 + 110


def test_figures_that_follow_from_nothing_are_dashes_also_in_the_sums() -> None:
    both_edited = diff({"a": pair(2)}, {"a": pair(2).model_copy(update={"rank": 6})}, (True, True))
    assert lines(both_edited)["a"] == ("spatial 2/9", "spatial 6/9", "—", "—")
    other_scheme = pair(2).model_copy(update={"scheme": "channel", "rank": 3})
    found = lines(diff({"a": pair(2)}, {"a": other_scheme}, (False, True)))
    assert found["a"] == ("spatial 2/9", "channel 3/9", "400 → —", "—")
    assert found["all layers"] == ("", "", "400 → —", "—")


def test_json_has_both_sides_of_every_layer_that_differs_and_the_totals() -> None:
    found = diff_to_json(diff({"a": pair(2), "b": DENSE}, {"a": pair(3), "c": DENSE}), "one", "two")
    assert (found["from"], found["to"], found["same"]) == ("one", "two", 0)
    assert (found["layers"]["a"]["from"]["rank"], found["layers"]["a"]["to"]["rank"]) == (2, 3)
    assert found["layers"]["b"]["to"] is None
    assert found["layers"]["c"]["from"] is None
    assert found["layers"]["c"]["to"]["dense"] is True
    assert found["totals"]["to"] == {
        "dense_macs": 2000, "macs": 1600, "dense_params": 220, "params": 180, "dense_bytes": 880, "bytes": 720,
    }  # fmt: skip
