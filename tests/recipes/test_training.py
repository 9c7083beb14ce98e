"""What can be checked about training without training: resuming, the optimizer, the weights of the questions."""

import json
import subprocess
import sys

import pytest
import torch
from recipes.demo_vlm.batches import SLOTS
from recipes.demo_vlm.losses import slot_weights
from recipes.demo_vlm.muon import Muon, orthogonal
from recipes.demo_vlm.state import SHARD_BYTES, collect, read_state, restore, write_state
from recipes.demo_vlm.train import Plan, Trainer, saved_plan, schedule
from torch import nn

TINY = Plan(device="cpu", seconds=(0.0, 60.0), batch=1, workers=0, log_every=1, few_tiles=(0.25,) * 4)


@pytest.mark.slow
def test_a_paused_run_goes_on_at_the_same_step_with_the_same_weights_and_optimizers(tmp_path):
    first = Trainer(TINY, tmp_path / "run", pause_after_s=0.0)
    assert not first.run()  # one step of stage 2, then the time of the piece is over
    state = tmp_path / "run" / "state"

    resumed = Trainer(saved_plan(state), tmp_path / "run", resume=state)

    assert resumed.plan == TINY
    assert (resumed.clocks[2].step, resumed.piece) == (1, 1)
    assert resumed.clocks[2].seconds == first.clocks[2].seconds
    assert resumed.knobs.bit_generator.state == first.knobs.bit_generator.state
    before, after = (collect(run._modules(), run.optimizers[2]) for run in (first, resumed))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(name.endswith("#momentum") for name in before) > 0
    assert sum(name.endswith("#exp_avg_sq") for name in before) > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [line["piece"] for line in lines if "plan" in line] == [0, 1]  # one curve


def test_a_state_comes_back_from_shards_of_limited_size(tmp_path):
    tensors = {f"weight{i}": torch.full((1_500_000,), float(i)) for i in range(5)}  # 6 MB each, so two in a shard
    write_state(tmp_path / "state", tensors, {"step": 7})
    shards = sorted((tmp_path / "state").glob("*.safetensors"))
    assert len(shards) == 3
    assert all(shard.stat().st_size < SHARD_BYTES + 100_000 for shard in shards)
    again, numbers = read_state(tmp_path / "state")
    assert numbers == {"step": 7}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="another model: it differs in"):
        restore({"model.weight": torch.zeros(1)}, {"model": nn.Linear(1, 1)}, [])


def test_an_incomplete_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no complete training state"):
        read_state(tmp_path)


def test_paths_that_are_taught_perception_alone_leave_out_every_kind_of_reasoning():
    everything, perception = slot_weights(reasoning=True), slot_weights(reasoning=False)
    left_out = {kind for kind, weight in zip(SLOTS, perception, strict=True) if weight == 0}
    assert left_out == {"order", "worth", "part", "compare", "gap", "sum", "total"}
    assert min(everything) > 0
    assert [w for w in perception if w] == [w for w, p in zip(everything, perception, strict=True) if p]


def test_orthogonal_keeps_the_directions_and_makes_the_singular_values_about_one():
    # U diag(3, 1) V^T with the rotations of 30 and 60 degrees has U V^T as its nearest orthogonal matrix.
    def turn(degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)

    left, right = turn(30.0), turn(60.0)
    result = orthogonal(left @ torch.diag(torch.tensor([3.0, 1.0])) @ right.mT).float()
    singular = torch.linalg.svdvals(result)
    assert ((singular > 0.65) & (singular < 1.25)).all()  # the band that five quintic steps end in
    inner = left.mT @ result @ right  # diagonal again if the directions are kept
    assert inner[0, 1].abs() < 0.03
    assert inner[1, 0].abs() < 0.03


def test_tall_matrices_are_orthogonal_along_their_short_side():
    torch.manual_seed(0)
    tall = orthogonal(torch.randn(3, 40, 8)).float()
    gram = tall.mT @ tall
    assert (gram - torch.eye(8)).abs().max() < 0.6


def test_muon_moves_a_matrix_against_its_gradient_by_the_size_of_an_adamw_step():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    optimizer.step()
    # 0.1 * 0.2 * sqrt(2) = 0.0283 along the orthogonal direction, which is the identity here
    assert weight.diagonal().tolist() == pytest.approx([-0.0283, -0.0283], rel=0.3)
    assert weight[0, 1].item() == pytest.approx(0.0, abs=1e-4)


def test_the_learning_rate_warms_up_in_steps_and_falls_with_time():
    assert schedule(0, 0.0, floor=0.02) == pytest.approx(1 / 150)
    assert schedule(149, 0.0, floor=0.02) == pytest.approx(1.0)
    assert schedule(1000, 0.5, floor=0.02) == pytest.approx(0.51)  # 0.02 + 0.98 / 2
    assert schedule(1000, 1.0, floor=0.02) == pytest.approx(0.02)


@pytest.mark.slow
def test_training_and_tables_need_only_what_a_bare_machine_with_torch_has():
    program = (
        "import sys, recipes.demo_vlm.__main__, recipes.demo_vlm.answers, recipes.demo_vlm.train; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "duckdb", "plotly", "pyarrow", "typer"} & set(loaded)
