"""The numbers of `gap` on tables small enough to work out by hand."""

import numpy as np
import pytest
from recipes.demo_vlm.gap import Measured, best_by_kind, best_mix, gap_at, gap_lines, gaps, hindsight, measured
from recipes.demo_vlm.table import FULL, pack_bits, shares
from recipes.demo_vlm.verdicts import accuracy_verdicts, knob_verdicts, verdicts, worth_verdicts

CHEAP = (16, 1, (2, 3, 4, 5))
LOOKS, THINKS = (True, False, False, False), (True, True, True, True)


def two_by_two(right=True):
    """Full costs 1 and answers all; the cheap one costs 0.2, answers all of kind a and a quarter of kind b."""
    bits = np.array([[THINKS, THINKS], [THINKS, LOOKS]])  # [setting, kind, question]
    return Measured(
        settings=(FULL, CHEAP),
        cost=np.array([1.0, 0.2]),
        kinds=("a", "b"),
        weight=np.array([0.75, 0.25]),
        accuracy=bits.mean(-1),
        right=bits if right else None,
    )


def test_a_mean_budget_pays_for_the_kind_that_needs_it():
    gap = gap_at(two_by_two(), "mean", 0.40)
    # Only cheap keeps 0.40: 0.75 * 1 + 0.25 * 0.25.
    assert gap.fixed == pytest.approx(0.8125)
    assert gap.fixed_setting == CHEAP
    # A quarter of the requests at full: 0.2 * 0.75 + 1 * 0.25 = 0.40; accuracy 0.8125 + 0.25 * 0.1875.
    assert gap.mix == pytest.approx(0.859375)
    # Kind b at full costs exactly that as well.
    assert gap.by_kind == pytest.approx(1.0)
    assert gap.choices == {"a": CHEAP, "b": FULL}


def test_below_the_price_of_a_kind_it_stays_cheap():
    gap = gap_at(two_by_two(), "mean", 0.39)
    assert gap.by_kind == pytest.approx(0.8125)
    # Hindsight moves single questions: each of the three that cheap gets wrong weighs 0.25 / 4 and costs 0.8 more:
    # 0.05 of mean cost; 0.19 pays for three of them.
    assert gap.hindsight == pytest.approx(1.0)
    # 0.10 pays for two of them: 0.8125 + 2 * 0.0625.
    assert gap_at(two_by_two(), "mean", 0.30).hindsight == pytest.approx(0.9375)


def test_a_deadline_allows_only_settings_within_it():
    late, early = gap_at(two_by_two(), "deadline", 1.0), gap_at(two_by_two(), "deadline", 0.5)
    assert (late.fixed, late.mix, late.by_kind, late.hindsight) == (1.0, 1.0, 1.0, 1.0)
    assert early.fixed == early.mix == early.by_kind == early.hindsight == pytest.approx(0.8125)


def test_under_a_deadline_kinds_may_want_different_settings_of_one_price():
    task = Measured(
        settings=(FULL, CHEAP, (16, 4, ())),
        cost=np.array([1.0, 0.4, 0.4]),
        kinds=("a", "b"),
        weight=np.array([0.5, 0.5]),
        accuracy=np.array([[1.0, 1.0], [0.9, 0.2], [0.4, 1.0]]),
        right=None,
    )
    gap = gap_at(task, "deadline", 0.5)
    assert gap.fixed == pytest.approx(0.7)  # (0.4 + 1.0) / 2
    assert gap.by_kind == pytest.approx(0.95)  # (0.9 + 1.0) / 2
    assert gap.hindsight is None


def test_budgets_that_no_setting_keeps_are_left_out():
    task = two_by_two()
    assert len(gaps(task)) == 16
    dear = Measured(**{**vars(task), "cost": np.array([1.0, 0.5])})
    assert [gap.budget for gap in gaps(dear)] == [0.50, 0.55, 0.60] * 2


def test_a_mix_needs_no_dearer_setting():
    assert best_mix(np.array([0.2, 0.4]), np.array([0.5, 0.6]), 0.6) == pytest.approx(0.6)


def test_the_choice_by_kind_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, accuracy = np.sort(rng.uniform(0.1, 1.0, 4)).round(3), rng.uniform(size=(4, 3))
        weight = np.array([0.5, 0.3, 0.2])
        budget = float(rng.uniform(cost.min() + 0.01, 1.0))
        chosen = best_by_kind(cost, accuracy, weight, budget)
        everything = np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
        kept = everything[(cost[everything] @ weight) <= budget + 1e-9]
        best = max(accuracy[choice, range(3)] @ weight for choice in kept)
        assert cost[chosen] @ weight <= budget + 1e-9
        assert accuracy[chosen, range(3)] @ weight == pytest.approx(best)


def test_hindsight_never_pays_for_what_no_setting_answers():
    right = np.array(
        [[[True, False]], [[False, False]]]
    )  # the dear setting answers the first question, nothing the other
    assert hindsight(np.array([1.0, 0.1]), right, np.array([1.0]), 1.0, "mean") == pytest.approx(0.5)
    # The first question costs 0.9 more for half of the weight: 0.45 beyond 0.1.
    assert hindsight(np.array([1.0, 0.1]), right, np.array([1.0]), 0.55, "mean") == pytest.approx(0.5)
    assert hindsight(np.array([1.0, 0.1]), right, np.array([1.0]), 0.54, "mean") == 0.0


def _rows(accuracy_by_setting):
    rows = []
    for (tokens, top_k, skipped), by_kind in accuracy_by_setting.items():
        for kind in shares():
            n_right = round(100 * by_kind.get(kind, 1.0))
            bits = pack_bits([True] * n_right + [False] * (100 - n_right))
            row = {"vision_tokens": tokens, "moe_topk": top_k, "block_skip": list(skipped), "kind": kind}
            rows.append({**row, "n": 100, "right": n_right, "bits": bits})
    return rows


def _task(**changed):
    """A table that meets all demands on knobs, with some accuracies changed: one_tile, half and so on."""
    fine = {"digit": 0.6, "read": 0.3, "hop": 0.6}
    accuracy = {
        FULL: changed.get("full", {"total": 0.92}),
        (80, 4, ()): changed.get("four_tiles", {"read": 0.8}),
        (16, 4, ()): changed.get("one_tile", fine),
        (272, 1, ()): changed.get("one_expert", {"gap": 0.96}),
        (272, 4, (2, 3, 4, 5)): changed.get("half", {"total": 0.5, "gap": 0.85}),
        CHEAP: fine,
    }
    cost = {FULL: 1.0, (80, 4, ()): 0.4, (16, 4, ()): 0.3, (272, 1, ()): 0.85, (272, 4, (2, 3, 4, 5)): 0.7, CHEAP: 0.2}
    return measured(_rows(accuracy), cost)


def test_all_demands_on_accuracy_and_knobs_can_be_met():
    judged = [*accuracy_verdicts(_task()), *knob_verdicts(_task())]
    assert [verdict.demand for verdict in judged if not verdict.met] == []


@pytest.mark.parametrize(
    ("changed", "unmet", "found"),
    [
        ({"full": {"total": 0.89}}, "full: at least 0.90 on each kind", "0.890 (total)"),
        ({"one_tile": {"digit": 0.6, "read": 0.3, "hop": 0.8}}, "tiles: 16 tokens lose at least 25", "20.0 (hop)"),
        ({"four_tiles": {"read": 0.95}}, "tiles: 80 tokens lose at least 10 points", "5.0 (read)"),
        ({"half": {"gap": 0.5}}, "depth: 4 of 8 blocks lose at least 10 points on two", "50.0 (gap)"),
        ({"half": {"total": 0.5, "gap": 0.5, "count": 0.95}}, "depth: 4 of 8 blocks: coarse", "5.0 (count)"),
        ({"one_expert": {"gap": 0.98}}, "experts: top_k 1 loses at least 3 points", "2.0 (gap)"),
    ],
)
def test_each_demand_can_fail_and_says_by_how_much(changed, unmet, found):
    task = _task(**changed)
    failed = [verdict for verdict in (*accuracy_verdicts(task), *knob_verdicts(task)) if not verdict.met]
    assert len(failed) == 1
    assert failed[0].demand.startswith(unmet)
    assert failed[0].found == found


def test_control_is_worth_it_only_with_enough_budgets():
    good = gap_at(two_by_two(), "mean", 0.40)
    assert not worth_verdicts([good] * 2)[0].met
    assert worth_verdicts([good] * 3)[0].met
    assert not worth_verdicts([good] * 3)[1].met  # no deadline among them


def test_every_demand_has_a_verdict_and_every_gap_a_line():
    task = _task()
    found = gaps(task)
    assert len(verdicts(task, found)) == 13
    assert len(gap_lines(found)) == 1 + len(found)
