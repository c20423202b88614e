"""Steps of the benchmark's GPU workload, a replayed decode step, and the kernels that took the most time."""

import time

import torch
from torch.profiler import ProfilerActivity, profile

from grpo_bench import kernels
from grpo_bench.run import one_step
from grpo_bench.speed import workloads
from grpo_bench.speed.child import Spec
from grpo_bench.speed.ours import build
from grpo_bench.state import State

WORKLOAD = workloads.choose("gpu", {})


def step(parts, state):
    state.step += 1
    torch.cuda.synchronize()
    start = time.perf_counter()
    one_step(parts, state, 0.0)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    spec = Spec(
        contender="native", dtype="bfloat16", overrides=workloads.overrides(WORKLOAD, {}), prompts=WORKLOAD.prompts,
        group_size=WORKLOAD.group_size, tokens=WORKLOAD.tokens, prompt_tokens=workloads.stretched(WORKLOAD, {}),
    )  # fmt: skip
    start = time.time()
    parts, state = build(spec), State()
    print(f"build {time.time() - start:.1f} s, kernels {'on' if kernels.allowed() else 'off'}")
    for number in range(4):
        seconds = step(parts, state)
        phases = {name: round(value, 3) for name, value in parts.meter.end_step().items()}
        print(f"step {number}: {seconds:.3f} s", phases, flush=True)
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"peak {peak:.1f} GB; micro-batch tokens {parts.learner.tokens}")
    decoder = next(iter(parts.engine.engine._kept.values()))
    graphs = decoder.captured._graphs
    print("graphs", len(graphs), "sized", decoder.sized, list(graphs)[:3])
    decoder.counts.fill_(WORKLOAD.tokens // 2)
    graph = next(iter(graphs.values()))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(50):
        graph.replay()
    torch.cuda.synchronize()
    print(f"decode step replayed at half length: {(time.perf_counter() - start) / 50 * 1e3:.3f} ms")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step(parts, state)
    events = [event for event in found.key_averages() if event.self_device_time_total > 0]
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:45]:
        print(f"{event.self_device_time_total / 1e3:9.2f} ms {event.count:6d}  {event.key[:110]}")


if __name__ == "__main__":
    main()
