"""The warm start: it teaches, it is the same for every arm, and its cache is never trusted blindly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_data import make, same, snapshot

from grpo_bench import kernels, warmstart
from grpo_bench.config import Config
from grpo_bench.policy import Policy, layout
from grpo_bench.policy import network as network_module
from grpo_bench.tasks import Task, load_task
from grpo_bench.tiny import tiny_model, tiny_tokenizer
from grpo_bench.types import Batch
from grpo_bench.warmstart import _demonstration_batch, cache_dir, model_fingerprint, warm_start, warmstart_key

CPU = torch.device("cpu")
SHORT = ("model.warmstart.steps=12", "model.warmstart.batch_size=8", "model.warmstart.lr=0.01")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path))


def fresh(cfg: Config) -> tuple[Task, Policy, Any, str]:
    assert cfg.model.tiny is not None
    task, policy = load_task(cfg.task, cfg.seed), Policy(tiny_model(cfg.model.tiny), torch.float32)
    key = warmstart_key(cfg, task, model_fingerprint(policy.model), torch.float32)
    return task, policy, tiny_tokenizer(cfg.model.tiny), key


def start(cfg: Config) -> tuple[Policy, bool, str]:
    task, policy, tokenizer, key = fresh(cfg)
    trained = warm_start(cfg, task, policy, tokenizer, key, lambda done, total: None)
    return policy, trained, key


def heldout(cfg: Config, task: Task, tokenizer: Any) -> Batch:
    pairs = task.demonstrations(32, seed=99)
    prompts = task.prompt_ids([problem for problem, _ in pairs], tokenizer)
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for _, text in pairs]
    return _demonstration_batch(prompts, answers, CPU)


def loss(policy: Policy, batch: Batch) -> float:
    with torch.no_grad():
        logp, _ = policy.logp(layout(batch, torch.arange(len(batch.mask))), 1.0)
    return float(-logp.sum() / batch.mask.sum())


def test_the_loss_on_other_demonstrations_falls() -> None:
    cfg = make(*SHORT, "model.warmstart.steps=60")
    task, policy, tokenizer, key = fresh(cfg)
    batch = heldout(cfg, task, tokenizer)
    before, seen = loss(policy, batch), []
    assert before == pytest.approx(6.24, abs=0.2)  # ln 512 = 6.238: an untrained model knows nothing
    assert warm_start(cfg, task, policy, tokenizer, key, lambda done, total: seen.append((done, total)))
    assert loss(policy, batch) < before - 1.5
    assert seen == [(i, 60) for i in range(1, 61)]


def test_answers_are_imitated_with_their_end_token_and_prompts_are_not() -> None:
    batch = _demonstration_batch([[1, 2, 3], [4]], [[5, 0], [6, 7, 0]], CPU)
    assert batch.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.tokens.tolist() == [[1, 2, 3, 5, 0, 0], [0, 0, 4, 6, 7, 0]]


def test_a_second_run_loads_the_same_weights() -> None:
    first, trained, _ = start(make(*SHORT))
    again, trained_again, _ = start(make(*SHORT, "algo=ppo", "seed=3"))  # another arm and seed
    assert (trained, trained_again) == (True, False)
    assert same(snapshot(first), again)
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight  # still tied


def test_training_anew_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, _, _ = start(make(*SHORT))
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "other"))
    torch.manual_seed(123)
    again, trained, _ = start(make(*SHORT, "optim.betas=[0.5,0.5]", "optim.eps=0.1", "optim.weight_decay=0.5"))
    assert trained
    assert same(snapshot(first), again)  # the arm's optimiser has no part in it


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "digest"])
def test_a_damaged_cache_is_trained_anew(damage: str) -> None:
    first, _, key = start(make(*SHORT))
    path = cache_dir() / "warmstart" / f"{key}.safetensors"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "flipped":  # a valid file with one other number
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "foreign":
        path.write_bytes(b"not weights")
    else:
        path.with_suffix(".sha256").unlink()
    again, trained, _ = start(make(*SHORT))
    assert trained
    assert same(snapshot(first), again)
    assert path.read_bytes() == data
    assert not start(make(*SHORT))[1]


def test_an_interrupted_warm_start_leaves_nothing_that_would_be_loaded() -> None:
    cfg = make(*SHORT)
    task, policy, tokenizer, key = fresh(cfg)

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_start(cfg, task, policy, tokenizer, key, interrupt)
    assert [p.suffix for p in (cache_dir() / "warmstart").iterdir()] == [".lock"]
    assert start(cfg)[1]


def test_micro_batches_do_not_change_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, _, _ = start(make(*SHORT))
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("grpo_bench.warmstart.micro_batch_tokens", lambda policy, tokens: 100)
    monkeypatch.setattr(network_module, "LOGIT_ELEMENTS", 512 * 10)
    again, _, _ = start(make(*SHORT))
    for name, weights in snapshot(first).items():
        torch.testing.assert_close(again.state_dict()[name], weights, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "override",
    [
        "model.warmstart.steps=13",
        "model.warmstart.batch_size=9",
        "model.warmstart.lr=0.02",
        "model.warmstart.seed=1",
        "model.tiny.init_seed=1",
        "task.demonstrations={worked:1}",
        "task.prompt.template='Q: {question}'",
        "task.arithmetic.steps=[2,3]",
        "task.version=2",
    ],
)
def test_the_key_follows_what_the_weights_depend_on(override: str) -> None:
    assert fresh(make(*SHORT, override))[3] != fresh(make(*SHORT))[3]


@pytest.mark.parametrize(
    "override", ["seed=7", "algo=ppo", "group_size=4", "lr=0.5", "eval.n=3", "optim.betas=[0.5,0.5]"]
)
def test_the_key_is_shared_by_arms_and_seeds(override: str) -> None:
    assert fresh(make(*SHORT, override))[3] == fresh(make(*SHORT))[3]


def test_the_precision_is_part_of_the_key() -> None:
    cfg = make(*SHORT)
    task = load_task(cfg.task, 0)
    assert warmstart_key(cfg, task, "a", torch.float32) != warmstart_key(cfg, task, "a", torch.bfloat16)
    assert warmstart_key(cfg, task, "a", torch.float32) != warmstart_key(cfg, task, "b", torch.float32)
    assert warmstart_key(make("model.warmstart.steps=0"), task, "a", torch.float32) == ""


def test_the_compiled_code_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of before it changed, or of without it, are others: a run on a new machine would not find them."""
    cfg = make(*SHORT)
    task = load_task(cfg.task, 0)
    keys = {warmstart_key(cfg, task, "a", torch.float32)}
    for found in ("0123-0", "4567-0", None):
        monkeypatch.setattr(kernels, "fingerprint", lambda on_gpu=False, found=found: found)
        keys.add(warmstart_key(cfg, task, "a", torch.float32))
    assert len(keys) == 4


def test_a_models_fingerprint_sees_every_weight() -> None:
    tiny = make().model.tiny
    assert tiny is not None
    model = tiny_model(tiny)
    before = model_fingerprint(model)
    assert before == model_fingerprint(tiny_model(tiny))
    with torch.no_grad():
        next(reversed(list(model.parameters())))[-1] += 1e-6
    assert model_fingerprint(model) != before


def test_threads_of_the_job_do_not_decide_the_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs with other threads on one machine begin from one model."""
    before, found = torch.get_num_threads(), []
    monkeypatch.setattr(warmstart, "cores", lambda: 16)
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(warmstart.threads())
        with warmstart._all_threads():
            assert torch.get_num_threads() == warmstart.MOST_THREADS
        assert torch.get_num_threads() == count
    torch.set_num_threads(before)
    assert found == [warmstart.MOST_THREADS] * 2
    monkeypatch.setattr(warmstart, "cores", lambda: 1)
    assert warmstart.threads() == 1
