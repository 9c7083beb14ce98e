"""What is known of latency: forecasts on made-up latencies whose law is known, and how often they are exceeded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from chronostat.evidence.latency import Forecast, LatencyModel, Row, allowed_beyond, out_of_fold, size_terms
from chronostat.evidence.linear import BayesianLinear
from stand_ins.control_fixtures import LATENCIES, SPACE, forecast_of

S = len(SPACE)
ONE = np.ones((1, 1))  # features of one request
ALIKE = np.full((1, S, 2), 10.0)  # its tokens
EVERYTHING = np.arange(S)


# a forecast


def test_a_mean_by_hand():
    forecast = forecast_of(
        [1.0, 0.5],
        2,
        slopes=np.array([[0.5, 0.0], [0.0, 0.1], [0.2, 0.0], [0.0, 0.0], [0.0, 0.3]]),
        prompt=np.array([0.0, 0.25]),
        smear=1.1,
        controller=0.02,
    )
    tokens = np.array([[[21.0, 32.0], [21.0, 32.0]]])  # z = log(22 / 11) and log(33 / 11)
    image, text = np.log(2), np.log(3)
    expected = [
        1.0 * np.exp(0.5 * image + 0.2 * image**2 + 0.25 * 2),
        0.5 * np.exp(0.1 * text + 0.3 * image * text + 0.25 * 2),
    ]
    found = forecast.mean(np.array([[1.0, 2.0]]), tokens)
    assert found.tolist() == [pytest.approx([1.1 * value + 0.02 for value in expected])]


def test_terms_are_those_of_the_size_relative_to_the_typical_one():
    terms = size_terms(np.array([[[21.0, 10.0]]]), np.array([10.0]), 32.0)
    image, text = np.log(2), -np.log(3)
    assert terms[:, 0, 0].tolist() == pytest.approx([image, text, image**2, text**2, image * text])
    assert size_terms(ALIKE, np.full(S, 10.0), 10.0).any() is np.False_


def test_the_probability_to_be_late_is_the_share_of_residuals_beyond():
    residuals = np.array([-1.0, 0.0, 1.0, 2.0])
    forecast = forecast_of([1.0, 0.5], residuals=residuals, unknown=np.array([0.0, 0.1]), controller=0.02)

    def late(limit, **options):
        return forecast.late(ONE, np.full((1, 2, 2), 10.0), limit + 0.02, **options)[0].tolist()

    assert late(np.exp(0.05), doubt=0.0) == [0.5, 0.0]  # half a spread above: beyond it are 1 and 2
    assert late(np.exp(-0.05), doubt=0.0) == [0.75, 0.0]
    assert late(0.5 * np.exp(0.15), doubt=0.0) == [1.0, 0.25]  # beyond one and a half spreads is 2
    assert late(0.5 * np.exp(0.15), doubt=1.0) == [1.0, 0.5]  # taken to be slower by .1, one spread
    assert late(0.5 * np.exp(0.15)) == [1.0, 0.5]


def test_no_room_beside_the_controller_is_late_for_sure():
    forecast = forecast_of(LATENCIES, controller=0.1)
    assert forecast.late(ONE, ALIKE, 0.1).tolist() == [[1.0] * S]
    assert forecast.late(ONE, ALIKE, 0.05).tolist() == [[1.0] * S]


def test_its_state_forecasts_the_same():
    forecast = measured(noise).forecast()
    other = Forecast.restored(forecast.state())
    prompts, tokens = np.ones((1, 3)), 3 * ALIKE
    assert np.array_equal(other.mean(prompts, tokens), forecast.mean(prompts, tokens))
    assert np.array_equal(other.late(prompts, tokens, 0.5), forecast.late(prompts, tokens, 0.5))
    assert (other.allowed, other.smear, other.controller) == (forecast.allowed, forecast.smear, 0.0)


# what is learned

UNSEEN = np.random.default_rng(0).standard_normal((60, 2))


def features(prompts):
    return np.concatenate([np.ones((len(prompts), 1)), prompts], axis=1)


def noise(rng, count):
    return np.exp(0.05 * rng.standard_normal(count))


def measured(noisy, requests=120, *, each=4, settings=EVERYTHING, latencies=LATENCIES, scale=1.0, seed=1):
    """After requests of one size, each under some settings; prompts have no part in it."""
    rng = np.random.default_rng(seed)
    model = LatencyModel(SPACE, features(UNSEEN), ALIKE.repeat(len(UNSEEN), axis=0))
    for i in range(requests):
        chosen = rng.permutation(settings)[:each]
        prompt = features(UNSEEN[[i % len(UNSEEN)]])[0]
        model.add(prompt, ALIKE[0], chosen, scale * latencies[chosen] * noisy(rng, len(chosen)))
    model.fit()
    return model


def test_mean_latencies_are_found_and_prompts_that_say_nothing_fade():
    model = measured(noise)
    forecast = model.forecast()
    assert forecast.mean(features(UNSEEN), ALIKE)[0] == pytest.approx(LATENCIES, rel=0.03)
    assert np.abs(forecast.prompt).max() < 0.005
    assert np.abs(forecast.slopes).max() == 0.0
    assert forecast.spread == pytest.approx(np.full(S, 0.05), rel=0.3)
    assert model.count == 480


def test_budgets_are_fractions_of_the_median_of_full():
    plain, slower = measured(noise), measured(noise, scale=1.25)
    assert slower.full == pytest.approx(1.25, rel=0.02)
    assert slower.full == pytest.approx(1.25 * plain.full, rel=0.002)
    assert slower.forecast().mean(features(UNSEEN), ALIKE) == pytest.approx(
        plain.forecast().mean(features(UNSEEN), ALIKE), rel=0.002
    )


def test_settings_that_were_never_executed_are_forecast_from_their_neighbours():
    shares = np.array([1.0, 0.6, 0.4])
    latencies = (shares[:, None] * np.array([1.0, 0.8, 0.5])).ravel()
    executed = np.array([0, 1, 2, 3, 5, 6])  # not the middle one, and neither of the last two
    model = measured(noise, settings=executed, latencies=latencies)
    forecast = model.forecast()
    assert forecast.mean(features(UNSEEN), ALIKE)[0] == pytest.approx(latencies, rel=0.15)
    others = np.setdiff1d(EVERYTHING, executed)
    assert forecast.unknown[0] == 0.0
    assert forecast.unknown[others].min() > 2 * forecast.unknown[executed].max()


def test_a_setting_that_breaks_the_rule_is_known_by_its_own_measurements():
    odd = LATENCIES.copy()
    odd[4] *= 1.6
    assert measured(noise, latencies=odd).forecast().mean(features(UNSEEN), ALIKE)[0] == pytest.approx(odd, rel=0.04)


IMAGE = np.repeat([120.0, 60.0, 30.0], 3)  # tokens of the typical request under each setting


def sized(rng, count):
    """Requests of different size: tokens [count, S, 2]."""
    pictures, texts = np.exp(rng.uniform(-1.2, 1.2, count)), np.exp(rng.uniform(2, 4, count))
    return np.stack([IMAGE * pictures[:, None], np.broadcast_to(texts[:, None], (count, S))], axis=2)


def of_size(tokens):
    """A law with known coefficients: [N, S, 2] -> logarithms [N, S]."""
    image, text = np.log1p(tokens[:, :, 0]) - np.log1p(IMAGE), np.log1p(tokens[:, :, 1]) - np.log1p(20.0)
    slopes = np.repeat([0.8, 0.5, 0.3], 3)  # fewer tokens, less of a picture's size
    return np.log(LATENCIES) + slopes * image + 0.1 * image**2 + 0.2 * text


@pytest.fixture(scope="module")
def of_sizes():
    rng = np.random.default_rng(2)
    prompts = rng.standard_normal((200, 2))
    tokens = sized(rng, 200)
    model = LatencyModel(SPACE, features(prompts), tokens)
    for prompt, each in zip(features(prompts), tokens, strict=True):
        chosen = rng.permutation(S)[:4]
        truth = of_size(each[None])[0, chosen] + 0.15 * prompt[1]
        model.add(prompt, each, chosen, np.exp(truth) * noise(rng, 4))
    model.fit()
    return model, prompts, tokens


def test_sizes_and_prompts_have_the_part_that_they_have(of_sizes):
    model, _, _ = of_sizes
    rng = np.random.default_rng(3)
    prompts, tokens = rng.standard_normal((100, 2)), sized(rng, 100)
    truth = np.exp(of_size(tokens) + 0.15 * prompts[:, :1])
    assert np.quantile(truth[:, 0], 0.95) > 6 * np.quantile(truth[:, 0], 0.05)
    found = model.forecast().mean(features(prompts), tokens) * model.full
    assert np.abs(np.log(found / truth)).mean() < 0.03
    assert np.abs(np.log(found / truth)).max() < 0.15
    assert model.forecast().prompt == pytest.approx([0.0, 0.15, 0.0], abs=0.01)


def test_where_sizes_differ_full_is_the_median_over_the_requests(of_sizes):
    model, prompts, tokens = of_sizes
    truth = np.exp(of_size(tokens) + 0.15 * prompts[:, :1])[:, 0]
    assert model.full == pytest.approx(np.median(truth), rel=0.05)
    assert np.median(model.forecast().mean(features(prompts), tokens)[:, 0]) == pytest.approx(1.0, rel=0.02)


def test_the_same_in_the_same_order_is_the_same_bit_for_bit():
    first, second = (measured(noise).forecast().state() for _ in range(2))
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_a_forecast_says_what_was_known_when_it_was_updated_whenever_it_is_asked():
    asked, not_asked = measured(noise), measured(noise)
    before = asked.forecast().state()
    for model in (asked, not_asked):
        model.add(features(UNSEEN[:1])[0], ALIKE[0], EVERYTHING, 3 * LATENCIES)
    after = not_asked.forecast().state()
    assert all(np.array_equal(value, after[name]) for name, value in before.items())
    assert (asked.count, not_asked.count) == (489, 489)
    asked.update()
    assert not np.array_equal(asked.forecast().base, before["base"])


def test_latencies_without_any_noise_have_the_least_spread():
    model = LatencyModel(SPACE, ONE, ALIKE)
    model.add(ONE[0], ALIKE[0], EVERYTHING, np.full(S, 0.5))
    model.fit()
    forecast = model.forecast()
    assert forecast.spread.tolist() == [1e-3] * S
    assert np.isfinite(forecast.residuals).all()
    assert np.isfinite(forecast.late(ONE, ALIKE, 1.0)).all()


def test_no_latency_changes_nothing():
    model = measured(noise)
    before = model.forecast()
    model.add(features(UNSEEN[:1])[0], ALIKE[0], EVERYTHING[:0], np.zeros(0))
    model.update()
    assert np.array_equal(model.forecast().base, before.base)


def test_residuals_are_of_measurements_that_the_regression_does_not_know():
    rng = np.random.default_rng(5)
    rows = [
        Row(
            x=rng.standard_normal((2, 3)),
            y=rng.standard_normal(2),
            drawn_in=rng.standard_normal(2),
            settings=np.array([i, i + 1]),
            drift=0.1 * i,
        )
        for i in range(7)
    ]
    whole = BayesianLinear(np.zeros(3, dtype=np.intp), [1.0], 0.1, 1e-6)
    for row in rows:
        whole.add(row.x, row.drawn_in)
    residuals, settings, drifts = out_of_fold(whole, rows)
    assert settings.tolist() == [0, 1, 5, 6, 1, 2, 6, 7, 2, 3, 3, 4, 4, 5]  # folds 0 and 5, 1 and 6, 2, 3, 4
    assert drifts == pytest.approx(0.1 * np.array([0, 0, 5, 5, 1, 1, 6, 6, 2, 2, 3, 3, 4, 4]))
    without = BayesianLinear(np.zeros(3, dtype=np.intp), [1.0], 0.1, 1e-6)
    for i in (0, 2, 3, 4, 5):
        without.add(rows[i].x, rows[i].drawn_in)
    without.update()
    assert residuals[4:6] == pytest.approx(rows[1].y - rows[1].x @ without.mean)


def test_how_unsure_the_mean_latency_of_some_choices_is():
    prompts, tokens = features(UNSEEN), ALIKE.repeat(len(UNSEEN), axis=0)

    def deviation(setting, requests):
        model, chosen = measured(noise, requests), np.full(len(UNSEEN), setting)
        return model.deviation(prompts, tokens, chosen, model.forecast().mean(prompts, tokens)[:, setting])

    assert deviation(0, 20) == pytest.approx(0.0, abs=1e-6)  # full is what all is a fraction of
    # about 9 measurements of each of two settings, with noise .05: .05 * (2 / 9) ** .5, less what neighbours say
    assert 0.01 < deviation(8, 20) < 0.03
    assert deviation(8, 200) < 0.5 * deviation(8, 20)


# deadlines

NOISES = {
    "lognormal": lambda rng, count: np.exp(0.12 * rng.standard_normal(count)),
    "heavy tails": lambda rng, count: np.exp(0.08 * rng.standard_t(3, count)),
    "skewed": lambda rng, count: np.exp(0.2 * rng.exponential(size=count)),
    "spikes": lambda rng, count: noise(rng, count) * np.where(rng.random(count) < 0.08, 1.8, 1.0),
    "skewed to the fast side": lambda rng, count: np.exp(-0.2 * rng.exponential(size=count)),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("share", [0.1, 0.05])
def test_as_many_are_late_as_is_forecast_whatever_the_noise_is_like(name, share):
    """On average over settings and runs; the limit of each is where exactly that share of its requests is late."""
    drawn = NOISES[name](np.random.default_rng(4), 100_000)
    limits = LATENCIES * np.quantile(drawn, 1 - share) / np.median(drawn)
    forecasts = [measured(NOISES[name], 600, seed=seed).forecast() for seed in range(3)]
    late = [[f.late(ONE.repeat(3, axis=1), ALIKE, limits[i], doubt=0.0)[0, i] for i in range(S)] for f in forecasts]
    assert np.mean(late) == pytest.approx(share, abs=0.04)


def test_an_execution_that_was_interrupted_says_little_about_its_setting():
    def twice_interrupted(times):
        model = measured(noise)
        for i, setting in enumerate((3, 7)):
            model.add(features(UNSEEN[[i]])[0], ALIKE[0], np.array([setting]), times * LATENCIES[[setting]])
        model.fit()
        return model.forecast()

    alone, interrupted, worse = measured(noise).forecast(), twice_interrupted(8.0), twice_interrupted(80.0)
    # of some 53 measurements of a setting: as they are, two of 8 times its latency would add log(8) / 54 = .04
    assert interrupted.base == pytest.approx(alone.base, abs=0.01)
    assert worse.base == pytest.approx(interrupted.base, abs=1e-3)
    assert interrupted.smear > alone.smear + 0.01  # 14 / 480: the mean is that of all measurements
    assert interrupted.residuals[-2:].min() > 5  # and so is how far they scatter


def test_what_comes_between_fits_is_drawn_in_as_the_last_fit_has_found():
    model = measured(noise)
    before = model.forecast().base
    model.add(features(UNSEEN[:1])[0], ALIKE[0], np.array([3]), 80 * LATENCIES[[3]])
    model.update()
    assert model.forecast().base == pytest.approx(before, abs=0.01)


@pytest.mark.parametrize("count", [1, 20, 58, 59, 60, 100, 361, 2_000])
def test_beyond_what_is_allowed_lie_5_percent_at_most_with_95_percent_confidence(count):
    beyond = allowed_beyond(count)
    kept = round(count * (1 - beyond))  # the deadline is at the kept-th smallest residual
    sure = binom.cdf(kept - 1, count, 0.95)  # that the true quantile lies below it
    if count < 59:
        assert beyond == 0.0  # not even the largest one is
    else:
        assert sure >= 0.95
        assert binom.cdf(kept - 2, count, 0.95) < 0.95  # one fewer would not be


@settings(max_examples=40)
@given(st.integers(59, 3_000))
def test_the_more_is_measured_the_nearer_to_5_percent_is_allowed(count):
    assert allowed_beyond(count) < 0.05
    assert allowed_beyond(count) == pytest.approx(0.05 - 1.645 * (0.05 * 0.95 / count) ** 0.5, abs=2.5 / count)


# the machine


def warm_and_cold(cold_factor, requests=150):
    """A machine on which the first execution of a trial takes longer; full is hardly ever the first."""
    rng = np.random.default_rng(6)
    model = LatencyModel(SPACE, features(UNSEEN), ALIKE.repeat(len(UNSEEN), axis=0))
    for i in range(requests):
        chosen = np.concatenate([[1 + i % 8], 1 + rng.permutation(8)[:2], [0]])
        taken = LATENCIES[chosen] * noise(rng, 4) * np.array([cold_factor, 1.0, 1.0, 1.0])
        cold = np.array([True, False, False, False])
        model.add(features(UNSEEN[[i % 60]])[0], ALIKE[0], chosen, taken, cold=cold)
    model.fit()
    return model


def test_what_a_cold_beginning_takes_is_told_apart_from_the_setting():
    forecast = warm_and_cold(1.4).forecast()
    assert forecast.mean(features(UNSEEN), ALIKE)[0] == pytest.approx(LATENCIES, rel=0.04)
    assert len(forecast.slopes) == 5  # forecasts are of warm executions


def test_a_machine_that_was_slow_for_a_while_will_be_so_again():
    """Fractions of the moment are as sharp as ever; how far latencies scatter is told with the drift."""
    models = []
    for drifting in (0.0, 0.3):
        rng = np.random.default_rng(7)
        model = LatencyModel(SPACE, features(UNSEEN), ALIKE.repeat(len(UNSEEN), axis=0))
        for i in range(120):
            chosen = rng.permutation(S)[:4]
            taken = LATENCIES[chosen] * noise(rng, 4)
            drift = float(np.exp(drifting * (i % 4 == 0)))
            model.add(features(UNSEEN[[i % 60]])[0], ALIKE[0], chosen, taken, drift=drift)
        model.fit()
        models.append(model.forecast())
    steady, slow_at_times = models
    prompts = features(UNSEEN)
    assert slow_at_times.base == pytest.approx(steady.base)
    # a quarter of the time everything takes 35 % longer
    limit = 1.2 * LATENCIES[4]
    assert steady.late(prompts, ALIKE, limit, doubt=0.0)[0, 4] == pytest.approx(0.0, abs=0.02)
    assert slow_at_times.late(prompts, ALIKE, limit, doubt=0.0)[0, 4] == pytest.approx(0.25, abs=0.03)


def test_the_spread_of_a_setting_begins_with_that_of_all_and_becomes_its_own():
    """Settings scatter by .02, but two by .2; one of those was measured as often as the others, one three times."""
    rng = np.random.default_rng(0)
    model = LatencyModel(SPACE, np.ones((4, 1)), np.tile(ALIKE, (4, 1, 1)))
    scatter = np.array([0.02] * (S - 2) + [0.2, 0.2])
    for i in range(60):
        settings = np.arange(S if i < 3 else S - 1)
        fractions = LATENCIES[settings] * np.exp(scatter[settings] * rng.standard_normal(len(settings)))
        model.add(ONE[0], ALIKE[0], settings, fractions)
    model.fit()
    spread = model.forecast().spread
    # residuals of all have a square of (7 * .0004 + .04) / 8 = .0053; 60 of .04 beside 20 of that: .177, of .0004: .040
    assert spread[-2] == pytest.approx(0.177, rel=0.2)
    assert spread[:-2] == pytest.approx(np.full(S - 2, 0.040), rel=0.2)
    # 3 beside 20: sqrt((3 * .04 + 20 * .0053) / 23) = .1, mostly that of all
    assert 0.06 < spread[-1] < 0.14
