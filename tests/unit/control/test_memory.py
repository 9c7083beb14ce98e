"""What learners remember."""

import pytest
import torch

from chronostat.control.learners.memory import Scale, Trials


def add(trials, value, draws):
    return trials.add(torch.full((3,), float(value)), torch.arange(draws), quality=torch.full((draws,), value / 10))


def test_a_group_with_failed_draws_is_padded():
    trials = Trials(3, 4, 10, ["quality"])
    assert add(trials, 1, 2) == [0]
    assert trials["valid"].tolist() == [[True, True, False, False]]
    assert trials["settings"].tolist() == [[0, 1, 0, 0]]
    assert trials["quality"].tolist() == [pytest.approx([0.1, 0.1, 0.0, 0.0])]


def test_a_larger_group_becomes_several_rows():
    trials = Trials(3, 2, 10, ["quality"])
    assert add(trials, 1, 5) == [0, 1, 2]
    assert trials["valid"].sum() == 5
    assert len(trials) == 3


def test_the_oldest_is_overwritten():
    trials = Trials(3, 2, 3, ["quality"])
    for value in range(1, 6):
        add(trials, value, 2 if value < 4 else 1)
    assert len(trials) == 3
    assert trials["observation"][:, 0].tolist() == [4, 5, 3]
    assert trials["valid"].sum(dim=1).tolist() == [1, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 70, 200])
def test_state_comes_back_and_goes_on_alike(count):
    first, second = (Trials(3, 2, 150, ["quality"]) for _ in range(2))
    for value in range(count):
        add(first, value, 2)
    second.load(first.state())
    for trials in (first, second):
        for value in range(100):
            add(trials, value, 1)
    assert len(first) == len(second) == min(count + 100, 150)
    for column in ("observation", "settings", "valid", "quality"):
        held = first["valid"] if column in ("settings", "quality") else ...
        assert torch.equal(first[column][held], second[column][held])


def test_scale_centres_and_makes_five_standard_deviations_one():
    scale = Scale(2)
    for value in (1.0, 3.0):
        scale.add(torch.tensor([value, 7.0]))
    # mean 2, standard deviation 1: (4.5 - 2) / 5; the second value never varied
    assert scale(torch.tensor([4.5, 7.0])).tolist() == pytest.approx([0.5, 0.0])
    assert scale(torch.tensor([100.0, 7.1])).tolist() == [1.0, 1.0]


def test_scale_comes_back():
    scale, other = Scale(3), Scale(3)
    for _ in range(5):
        scale.add(torch.rand(3))
    other.load(scale.state())
    seen = torch.rand(4, 3)
    assert torch.equal(scale(seen), other(seen))
