"""The configuration: parsed once, frozen, unknown keys refused."""

import re
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from chronostat.config import Config, load_config
from chronostat.errors import ConfigError
from chronostat.records import Budget


def sections():
    return [(name, f.annotation) for name, f in Config.model_fields.items() if is_section(f.annotation)]


def is_section(annotation):
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_every_default_is_valid_and_survives_json():
    config = load_config(None)
    assert config == Config()
    assert Config.model_validate(config.model_dump()) == config
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_every_field_is_documented():
    for name, section in [("config", Config), *sections()]:
        assert section.__doc__, name
        for key, field in section.model_fields.items():
            assert field.description or is_section(field.annotation), f"{name}.{key}"


def test_it_is_frozen():
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.train.group_size = 2


def test_a_file_and_overrides_of_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('seed = 3\n[train]\nlearner = "rloo"\ngroup_size = 6\n')
    config = load_config(path, ["train.group_size=8", "knobs.block_skip=[[2,3],[]]", "reward.mean=mnasnet"], seed=5)
    assert (config.seed, config.train.learner, config.train.group_size) == (5, "rloo", 8)
    assert config.knobs.block_skip == ((2, 3), ())
    assert config.reward.mean == "mnasnet"
    assert load_config(path, seed=None).seed == 3


@pytest.mark.parametrize(
    ("override", "key", "known"),
    [
        ("trian.seconds=3", "trian", "train"),
        ("train.secs=3", "train.secs", "seconds"),
        ("rloo.std=true", "rloo.std", "advantage"),
    ],
)
def test_an_unknown_key_names_the_known_ones(override, key, known):
    with pytest.raises(ConfigError, match=rf"unknown key '{key}'; known keys: .*{known}"):
        load_config(None, [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.group_size=1",
        "train.learner=ppo",
        "train.seconds=0",
        "train.seconds=nan",
        "measure.latency_metric=speed",
        "measure.on_unmeasured=ignore",
        "reward.mean=none",
        "reward.margin=1",
        "reward.overshoot_penalty=-1",
        "reward.mnasnet_exponent=0.1",
        "rloo.advantage=ppo",
        "rloo.weight_clip=0.5",
        "rloo.learning_rate=0",
        "direct.members=0",
        "train.calibration_executions=7",
        "train.select_executions=-1",
        "train.executions=0",
        "train.unseen=0",
        "validation.seconds=0",
        "validation.mean_budgets=[0.0]",
    ],
)
def test_a_value_that_is_not_allowed_is_named(override):
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=key) as caught:
        load_config(None, [override])
    assert value.strip("[]") in str(caught.value)


def numbers(annotation, key):
    """An override with a number that is not finite for each place in this type that takes a fraction."""
    if annotation is float:
        return [f"{key}={number}" for number in ("inf", "-inf", "nan")]
    inside = [each for part in get_args(annotation) for each in numbers(part, key)]
    if get_origin(annotation) is tuple:
        return [f"{name}=[{number}]" for name, number in (override.split("=") for override in inside)]
    return inside


def test_every_number_is_finite():
    fields = [(f"{name}.{key}", f) for name, section in sections() for key, f in section.model_fields.items()]
    fields += [(key, f) for key, f in Config.model_fields.items()]
    overrides = [override for key, f in fields for override in numbers(f.annotation, key)]
    assert {"seconds=inf", "rloo.entropy=inf", "knobs.vision_tokens=[-inf]"} < set(overrides)
    for override in overrides:
        key, _, number = override.partition("=")
        with pytest.raises(ConfigError, match=rf"{key}\S* = {number.strip('[]')}: Input should be a finite number"):
            load_config(None, [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("knobs.vision_tokens=0.25", "knobs.vision_tokens = 0.25: a list is wanted, written [0.25]"),
        ("knobs.block_order=3", "knobs.block_order = 3: a list is wanted, written [3]"),
        ("knobs.block_skip=[1, [2]]", "knobs.block_skip.0 = 1: a list is wanted, written [1]"),
        ("knobs.vision_tokens=all", 'knobs.vision_tokens = \'all\': a list is wanted, written [1, 2] or ["a", "b"]'),
        ("train=60", "train = 60: a section of keys is wanted, not one value"),
        ("model.layout=blocks", "model.layout = 'blocks': a section of keys is wanted, not one value"),
    ],
)
def test_a_value_where_a_list_or_a_section_is_wanted(override, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(None, [override])


@pytest.mark.parametrize(
    "override",
    ["reward.mean=mnasnet", "reward.deadline=mnasnet", "reward.overshoot_penalty=9", "reward.mnasnet_exponent=-1"],
)
def test_what_only_rewards_read_is_refused_where_there_are_none(override):
    key, _, _ = override.partition("=")
    with pytest.raises(ConfigError, match=f"{key} is read by train.learner = 'rloo' only, not by 'direct'"):
        load_config(None, [override])
    load_config(None, [override, "train.learner=rloo"])


@pytest.mark.parametrize(
    ("override", "learner", "other"),
    [("rloo.advantage=grpo", "direct", "rloo"), ("direct.members=2", "rloo", "direct")],
)
def test_what_only_the_other_learner_reads_is_refused(override, learner, other):
    key, _, _ = override.partition("=")
    with pytest.raises(ConfigError, match=f"{key} is read by train.learner = '{other}' only, not by '{learner}'"):
        load_config(None, [override, f"train.learner={learner}"])
    load_config(None, [override, f"train.learner={other}"])


def test_what_holds_any_policy_to_budgets_is_no_reward():
    assert load_config(None, ["reward.margin=0.1", "reward.multiplier_rate=0.1"]).train.learner == "direct"


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError, match=r"train.group_size.*unknown key 'speed'"):
        load_config(None, ["train.group_size=0", "speed=1"])


@pytest.mark.parametrize("override", ["train.seconds", "=3", "seed.x=1"])
def test_overrides_that_are_none(override):
    raw = ["seed=1", override] if override == "seed.x=1" else [override]
    with pytest.raises(ConfigError, match="--set"):
        load_config(None, raw)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none.toml: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(tmp_path / "bad.toml")


def test_budgets_to_judge():
    config = load_config(None, ["validation.mean_budgets=[0.3]", "validation.deadlines=[0.5, 0.6]"])
    assert config.validation.budgets() == (
        Budget(kind="mean", fraction=0.3),
        Budget(kind="deadline", fraction=0.5),
        Budget(kind="deadline", fraction=0.6),
    )
