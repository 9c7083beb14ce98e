"""``chronostat doctor`` on this machine, whatever state it is in."""

import json

import pytest

from e2e.commands import refusal, typed


@pytest.mark.slow
def test_doctor_examines_this_machine(tmp_path):
    said = typed("doctor", "--device", "cpu", "--seconds", "3", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert said.status == found["exit_status"]
    assert {0: "trustworthy", 10: "noisy", 11: "cannot measure"}[said.status] == found["verdict"]
    assert f"verdict: {found['verdict']}" in said.out
    for topic in ("cores", "governor", "turbo", "stolen CPU time", "CPU pressure", "CPU quota", "other processes"):
        assert topic in said.out
    if found["noise_floor"]:
        assert [each["metric"] for each in found["noise_floor"]] == ["prefill_ms", "decode_ms_per_token"]
        assert all(set(each["pairs"]) == {"2%", "5%", "10%"} for each in found["noise_floor"])
    assert found["repeats"] % 2 == 0
    assert found["conditions"]["threads"] == 1


@pytest.mark.slow
def test_a_model_of_ones_own_is_examined():
    from chronostat.models.load import BUNDLED

    said = typed("doctor", "--model", BUNDLED, "--seconds", "0.5")
    assert said.status in {0, 10, 11}


def test_a_model_that_is_not_there_is_refused():
    said = typed("doctor", "--model", "no/such/model")
    assert said.status == 4
    assert "no/such/model" in refusal(said)
