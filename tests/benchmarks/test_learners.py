"""The replay of learners: its truths by hand, the product's phases on a small table, and the plain library."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.kit.results import read_compressed
from benchmarks.learners import __main__ as command
from benchmarks.learners.cases import LEARNERS, Case, rows_of
from benchmarks.learners.judge import Played, verdict
from benchmarks.learners.replay import Replay
from benchmarks.learners.report import columns_of, print_report, share
from benchmarks.learners.table import Table
from benchmarks.learners.truth import truth_of
from benchmarks.learners.world import NOISES, World

from chronostat.config import Config, overridden
from chronostat.errors import ConfigError
from chronostat.evidence.observation import Observation
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget
from chronostat.validation.beside.plain_library import OPTIONS, PlainLibrary

SPACE = ActionSpace({"vision_tokens": [272, 80, 16], "moe_topk": [4, 1]})
COST = np.array([1.0, 0.9, 0.5, 0.45, 0.2, 0.15])
SMALL = (
    "train.unseen=60",
    "train.select_executions=24",
    "validation.mean_budgets=[0.4]",
    "validation.deadlines=[0.8]",
)


@pytest.fixture(scope="module")
def table():
    """Two kinds about 40 scenes: the first is right under every setting, the second under those of most tokens."""
    right = np.ones((40, 2, 6), dtype=np.bool_)
    right[:, 1, 2:] = False
    rng = np.random.default_rng(0)
    embeddings = np.concatenate([rng.normal(0, 1, (3, 8)), rng.normal(4, 1, (3, 8))])
    tokens = np.stack([np.array([272.0, 272, 80, 80, 16, 16]), np.full(6, 9.0)], axis=1)
    return Table(
        space=SPACE,
        right=right,
        cost=COST,
        share=np.array([0.75, 0.25]),
        prompt=np.stack([np.arange(40) % 3, 3 + np.arange(40) % 3], axis=1),
        texts=tuple(f"{'colour' if i < 3 else 'digits'} in wording {i}" for i in range(6)),
        observations=tuple(Observation(prompt=row, tokens=tokens) for row in embeddings),
    )


@pytest.fixture(scope="module")
def exact(table):
    """A world without noise."""
    return replace(World.of(table, "calm", 0), factors=np.ones(1))


def test_a_world_judges_on_scenes_that_are_not_learned_from_and_their_shares_sum_to_1(table):
    world = World.of(table, "lognormal", 3)
    assert len(world.scenes) == 20
    assert world.weight.sum() == pytest.approx(1)
    assert world.right.sum(axis=0) == pytest.approx([1, 1, 0.75, 0.75, 0.75, 0.75])
    assert not np.array_equal(world.scenes, World.of(table, "lognormal", 4).scenes)


@pytest.mark.parametrize("noise", NOISES)
def test_the_median_of_full_is_1_under_every_noise(table, noise):
    world = World.of(table, noise, 0)
    assert np.median(world.factors) == pytest.approx(1)
    assert world.within(1.0)[0] == pytest.approx(0.5, abs=1e-3)


def test_what_can_be_gained_at_a_mean_budget(exact):
    truth = truth_of(exact, Budget(kind="mean", fraction=0.24))
    assert truth.fixed == pytest.approx(0.75)
    # 0.75 of the requests at 0.15; a coin between 0.15 and 0.9: (0.24 - 0.15) / (0.9 - 0.15) = 0.12 of 0.25
    assert truth.mix == pytest.approx(0.75 + 0.12 * 0.25)
    # the others' quarter may cost 0.09 in all: 0.25 * 0.75 * p = 0.09
    assert truth.by_kind == pytest.approx(0.75 + 0.25 * 0.48)


def test_what_can_be_gained_at_a_deadline(exact):
    assert truth_of(exact, Budget(kind="deadline", fraction=0.9)).by_kind == pytest.approx(1)
    tight = truth_of(exact, Budget(kind="deadline", fraction=0.5))
    assert (tight.fixed, tight.mix, tight.by_kind) == pytest.approx((0.75, 0.75, 0.75))


def test_a_verdict_is_the_expectation_over_both_sides_of_the_coin(exact):
    dear, cheap = np.full(6, 1), np.full(6, 5)
    sides = [Played(0.2, dear), Played(0.8, cheap)]
    mean = verdict(exact, Budget(kind="mean", fraction=0.3), sides, learned=True)
    assert mean.accuracy == pytest.approx(0.2 * 1 + 0.8 * 0.75)
    assert mean.spent == pytest.approx((0.2 * 0.9 + 0.8 * 0.15) / 0.3)
    assert verdict(exact, Budget(kind="deadline", fraction=0.5), sides, learned=True).spent == pytest.approx(0.8)


def test_a_run_that_is_looked_at_goes_on_as_if_it_were_not(table):
    config = overridden(Config(seed=5), SMALL)

    def last(sizes):
        return list(Replay(World.of(table, "lognormal", 1), config).runs(sizes))[-1]

    looked_at, alone = last((0, 12, 30)), last((30,))
    assert len(looked_at.executed) == len(alone.executed)
    assert np.array_equal(looked_at.evidence.quality.mean(), alone.evidence.quality.mean())


def test_phases_execute_what_a_run_executes(table):
    config = overridden(Config(seed=5), SMALL)
    before, after = list(Replay(World.of(table, "lognormal", 1), config).runs((0, 30)))
    assert before.evidence.quality.count == 72 + 24
    assert 30 <= after.evidence.quality.count - before.evidence.quality.count < 34


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_is_judged_at_every_size_and_budget(table, learner, capsys):
    case = Case(world=0, seed=0, noise="calm", learner=learner, sizes=(0, 40), library=False, overrides=SMALL)
    rows = rows_of(table, case)
    assert [(row["size"], row["kind"]) for row in rows] == [(s, k) for s in (0, 40) for k in ("mean", "deadline")]
    assert all(0.7 < row["accuracy"] <= 1 and row["fixed"] <= row["mix"] <= row["by_kind"] for row in rows)
    assert rows[2]["spent"] == pytest.approx(1, abs=0.05)
    print_report(columns_of(rows))
    assert f"| calm | 40 | {learner} |" in capsys.readouterr().out


def test_direct_gains_what_the_kind_would_give_once_it_knows(table):
    case = Case(world=0, seed=0, noise="calm", learner="direct", sizes=(200,), library=False, overrides=SMALL)
    mean = rows_of(table, case)[0]
    assert mean["accuracy"] - mean["fixed"] > 0.9 * (mean["by_kind"] - mean["fixed"])


def test_the_share_is_one_of_means_over_worlds():
    part = {
        "world": np.array([0, 0, 1, 1]),
        "accuracy": np.array([0.6, 0.6, 0.7, 0.5]),
        "fixed": np.full(4, 0.5),
        "by_kind": np.array([0.7, 0.9, 0.7, 0.9]),
    }
    # gains 0.1 and 0.1 of 0.3 and 0.3
    found = share(part)
    assert (found.point, found.low, found.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def _taught(table, options):
    """Every prompt was executed under every setting; three are right everywhere, the others under the dear ones."""
    library = PlainLibrary(table.space, options)
    for _ in range(30):
        for prompt, text in enumerate(table.texts):
            quality = np.where((prompt < 3) | (np.arange(6) < 2), 1.0, 0.0)
            library.learn(text, np.arange(6), np.full(6, 1 / 6), quality)
    return library


def test_the_plain_library_learns_which_setting_a_prompt_needs(table):
    pytest.importorskip("vowpalwabbit")
    scores = _taught(table, OPTIONS).scores(table.texts)
    assert scores.shape == (6, 6)
    assert scores.max(axis=1) == pytest.approx(0, abs=1e-4)
    lost = -scores / -scores[3:, 2:].max()  # relative to the greatest loss
    assert lost[:3].max() < 0.6
    assert (lost[3:, 2:].min(axis=1) > lost[3:, :2].max(axis=1) + 0.4).all()


def test_on_given_executions_squarecb_and_regcb_are_the_same_regression(table):
    pytest.importorskip("vowpalwabbit")
    one, other = (
        _taught(table, f"{options} -b 12").weights() for options in (OPTIONS, OPTIONS.replace("square", "reg"))
    )
    assert np.count_nonzero(one) > 20
    assert np.array_equal(one, other)


def test_a_file_is_completed_and_never_replayed_twice(table, tmp_path, monkeypatch, capsys):
    replayed = []

    def counted(cases, processes):
        for case in cases:
            replayed.append((case.world, case.seed, case.noise, case.learner, case.sizes))
            yield rows_of(table, case)

    monkeypatch.setattr(command, "_replayed", counted)
    monkeypatch.setenv("CHRONOSTAT_COMMIT", "abc")

    def call(*arguments):
        replayed.clear()
        common = ["--learners", "rloo", "--noise", "calm", "--out", str(tmp_path / "rows.json.gz")]
        monkeypatch.setattr("sys.argv", ["learners", *common, *(f"--set={each}" for each in SMALL), *arguments])
        command.main()
        return read_compressed(tmp_path / "rows.json.gz")["raw"]["rows"]

    first = call("--worlds", "1", "--seeds", "1", "--sizes", "8")
    assert replayed == [(0, 0, "calm", "rloo", (8,))]
    assert call("--worlds", "1", "--seeds", "1", "--sizes", "8") == first
    assert replayed == []
    more = call("--worlds", "2", "--seeds", "1", "--sizes", "4")
    assert replayed == [(0, 0, "calm", "rloo", (4, 8)), (1, 0, "calm", "rloo", (4,))]
    assert sorted(zip(more["world"], more["size"], strict=True)) == [(0, 4)] * 2 + [(0, 8)] * 2 + [(1, 4)] * 2
    with pytest.raises(ConfigError, match=r"rows.json.gz was replayed with --set .*; take another file: --out"):
        call("--set", "train.group_size=2")
    capsys.readouterr()
