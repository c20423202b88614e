"""Checkpoints: exact round trips, damage noticed, a full disk survived."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_bench import checkpoint
from grpo_bench.checkpoint import DamagedError, flatten_optimizer, restore_optimizer
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent


def save(root: Path, step: int, tensors: dict, state: dict | None = None, keep: int = 2) -> Path:
    checkpoint.save(root, step, tensors, state or {}, {"journals": {}}, keep)
    return checkpoint.folder_of(root, step)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_round_trip_is_bitwise_for_every_dtype_and_shape(tmp_path):
    awkward = torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45])
    group = {
        "f32": awkward,
        "f64": awkward.double(),
        "bf16": awkward.bfloat16(),
        "int": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    state = {"step": 7, "rng": 2**127 + 1, "mean": 0.1 + 0.2, "nothing": None, "list": [1, "a"]}
    save(tmp_path, 7, {"policy": group, "nothing": {}}, state)
    found, _ = checkpoint.load(tmp_path, 7)
    assert found.step == 7
    assert found.state == state
    assert found.tensors("nothing") == {}
    loaded = found.tensors("policy")
    assert loaded.keys() == group.keys()
    for name, tensor in group.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)
    with pytest.raises(KeyError, match="critic"):
        found.tensors("critic")


def test_tied_and_overlapping_tensors(tmp_path):
    weight = torch.randn(50, 8)
    group = {"embed": weight, "head": weight, "row": weight[3], "flat": weight.view(-1)}
    folder = save(tmp_path, 1, {"policy": group})
    # embed once (1600 bytes), flat and row as copies (1600, 32); the tied head costs nothing
    assert (folder / "policy.safetensors").stat().st_size < 2 * 1600 + 32 + 600
    loaded = checkpoint.load(tmp_path, 1)[0].tensors("policy")
    for name, tensor in group.items():
        assert torch.equal(loaded[name], tensor)


def adamw(parameters: list[torch.Tensor]) -> torch.optim.AdamW:
    halves = [{"params": parameters[:1], "lr": 1e-3}, {"params": parameters[1:], "lr": 0.1 + 0.2, "weight_decay": 0.1}]
    return torch.optim.AdamW(halves, betas=(0.9, 0.95))


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], steps: int) -> None:
    for k in range(steps):
        optimizer.zero_grad()
        sum(((p - k) ** 2).sum() for p in parameters).backward()
        optimizer.step()


def test_optimizer_continues_bitwise_after_a_round_trip_through_files(tmp_path):
    torch.manual_seed(0)
    parameters = [torch.randn(3, 2, requires_grad=True), torch.randn(5, requires_grad=True)]
    optimizer = adamw(parameters)
    train(optimizer, parameters, 3)
    tensors, state = flatten_optimizer(optimizer.state_dict())
    save(tmp_path, 1, {"optimizer": tensors}, {"optimizer": state})
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    other = adamw(copies)
    found, _ = checkpoint.load(tmp_path, 1)
    restore_optimizer(other, found.tensors("optimizer"), found.state["optimizer"])
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert isinstance(other.param_groups[0]["betas"], tuple)
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            assert bits(other.state_dict()["state"][index][key]) == bits(value)
    train(optimizer, parameters, 4)
    train(other, copies, 4)
    for a, b in zip(parameters, copies, strict=True):
        assert bits(a.detach()) == bits(b.detach())


def test_optimizer_before_its_first_step_and_momentum_free_sgd():
    parameter = torch.ones(2, requires_grad=True)
    for make in (lambda: adamw([parameter, parameter.detach().clone()]), lambda: torch.optim.SGD([parameter], lr=0.5)):
        tensors, state = flatten_optimizer(make().state_dict())
        assert tensors == {}
        other = make()
        restore_optimizer(other, tensors, json.loads(json.dumps(state)))
        assert other.state_dict() == make().state_dict()


def test_optimizer_state_that_is_neither_tensor_nor_json_is_refused():
    with pytest.raises(TypeError, match=r"state\.0\.x is a set"):
        flatten_optimizer({"state": {0: {"x": {1}}}})


def test_only_the_newest_are_kept_and_a_step_can_be_written_twice(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, {"policy": {"w": torch.tensor([float(step)])}})
    assert checkpoint.steps_in(tmp_path) == [2, 3]
    save(tmp_path, 3, {"policy": {"w": torch.tensor([30.0])}})
    assert checkpoint.steps_in(tmp_path) == [2, 3]
    assert checkpoint.load(tmp_path, 3)[0].tensors("policy")["w"].item() == 30.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["policy.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_any_damage_is_noticed(tmp_path, name, harm):
    folder = save(tmp_path, 1, {"policy": {"w": torch.randn(100)}}, {"note": "x" * 100})
    checkpoint.load(tmp_path, 1)
    path = folder / name
    match harm:
        case "flip":
            flip(path)
        case "cut":
            path.write_bytes(path.read_bytes()[:-9])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
    with pytest.raises(DamagedError, match=name):
        checkpoint.load(tmp_path, 1)


def test_a_folder_under_another_steps_name_is_damaged(tmp_path):
    save(tmp_path, 1, {}).rename(checkpoint.folder_of(tmp_path, 9))
    with pytest.raises(DamagedError, match="step 1"):
        checkpoint.load(tmp_path, 9)


def test_full_disk_is_one_line_and_harms_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1, {"policy": {"w": torch.ones(3)}})
    write_text = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == "state.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"no space left on the disk; free some space") as caught:
        save(tmp_path, 2, {"policy": {"w": torch.ones(3)}})
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert torch.equal(checkpoint.load(tmp_path, 1)[0].tensors("policy")["w"], torch.ones(3))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from grpo_bench import checkpoint
from grpo_bench.types import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
root = Path(sys.argv[1])
try:
    checkpoint.save(root, 2, {"policy": {"w": torch.zeros(1_000_000)}}, {}, {}, 2)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_real_write_that_the_system_refuses(tmp_path):
    save(tmp_path, 1, {"policy": {"w": torch.ones(3)}})
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "larger than this disk or process allows" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.load(tmp_path, 1)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    save(tmp_path, 1, {})
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000001.old.tmp").mkdir()
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
