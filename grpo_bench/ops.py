"""Pure tensor functions, one formula each; shapes as in types.py.

Masked inputs and outputs are zero outside the mask. Nothing here can check that the data are on-policy, that rows of a
group stand together, or that log-probs are at one temperature: callers see to that. Only methods of tensors are used,
so that an algorithm's knobs can be read without importing torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG_LARGE = 80.0  # e^80 is finite in float32, and beyond every clip
FLAT = 1e-6  # a group whose rewards differ by no more than this carries no signal


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x·mask / Σ mask as a scalar; 0 when the mask is empty."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def following(x: Tensor) -> Tensor:
    """(B,T) -> (B,T): what stands at t + 1, and 0 after the last column."""
    shifted = x.roll(-1, dims=1)
    shifted[:, -1] = 0
    return shifted


def last_token(mask: Tensor) -> Tensor:
    """(B,T) -> (B,T): 1 on the last masked token of each row; rows without tokens stay 0."""
    return mask * (following(mask) == 0)


def gae(token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float | Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438, eq. 16): (B,T) -> (B,T).

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1};  V after the last token is 0.
    λ = 0 gives δ_t, λ = 1 gives Σ_k γ^k r_{t+k} − V_t. ``lam`` is a float or a (B,1) tensor.
    """
    values = values * mask
    deltas = (token_rewards + gamma * following(values) - values) * mask
    advantages = deltas.new_zeros(deltas.shape)
    carry = deltas.new_zeros(deltas.shape[0], 1)
    for t in range(deltas.shape[1] - 1, -1, -1):
        carry = (deltas[:, t : t + 1] + gamma * lam * carry) * mask[:, t : t + 1]
        advantages[:, t : t + 1] = carry
    return advantages


def to_go(x: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_{t' ≥ t} γ^(t'−t) x_t', what is still to come of x at each masked token: (B,T) -> (B,T)."""
    return gae(x, x.new_zeros(x.shape), mask, gamma, 1.0)


def whiten(x: Tensor, mask: Tensor, ddof: int = 0) -> Tensor:
    """(x − μ) / sqrt(σ² + 1e-8) over the masked tokens: (B,T) -> (B,T). With ddof 1 a single token has no spread: 0."""
    mean = masked_mean(x, mask)
    count = mask.sum()
    variance = (((x - mean) ** 2) * mask).sum() / (count - ddof).clamp(min=1)
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def flat_groups(rewards: Tensor, group_size: int) -> Tensor:
    """(B,) -> (P,1) bool: groups whose rewards are all equal (max − min ≤ 1e-6).

    Decided by this test and not by ε: with ε = 1e-8, float noise in eight rewards of 0.7 gives |A| near 1.
    """
    rewards_PG = rewards.view(-1, group_size)
    return rewards_PG.amax(1, keepdim=True) - rewards_PG.amin(1, keepdim=True) <= FLAT


def group_center(rewards: Tensor, group_size: int) -> Tensor:
    """r_i − mean of its group: (B,) -> (B,); 0 in flat groups and for G = 1."""
    rewards_PG = rewards.view(-1, group_size)
    centred = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centred.masked_fill(flat_groups(rewards, group_size), 0.0).view(-1)


def group_zscore(rewards: Tensor, group_size: int, ddof: int, eps: float, guard: bool = True) -> Tensor:
    """(r_i − μ) / (σ + ε) within each group: (B,) -> (B,); 0 in flat groups and for G = 1.

    DeepSeekMath (arXiv:2402.03300, §4.1.2) leaves ddof and ε open. G ≤ ddof has no spread: 0. Without ``guard`` flat
    groups are left to ε, as the frameworks have it: float noise is then divided by it.
    """
    if group_size <= ddof:
        return rewards.new_zeros(rewards.shape)
    rewards_PG = rewards.view(-1, group_size)
    deviation = rewards_PG.std(1, correction=ddof, keepdim=True) + eps
    if not guard:
        return ((rewards_PG - rewards_PG.mean(1, keepdim=True)) / deviation).view(-1)
    centred = group_center(rewards, group_size).view(-1, group_size)
    scores = centred / deviation
    return scores.masked_fill(flat_groups(rewards, group_size), 0.0).view(-1)  # with ε = 0 a flat group is 0/0


def batch_zscore(rewards: Tensor, group_size: int, ddof: int, eps: float, guard: bool = True) -> Tensor:
    """(r_i − mean of its group) / (σ of all B rewards + ε): (B,) -> (B,); 0 in flat groups and for G = 1.

    Lite PPO (arXiv:2508.08221, §5) leaves ddof and ε open. B ≤ ddof has no spread: 0. ``guard`` as in group_zscore.
    """
    if len(rewards) <= ddof:
        return rewards.new_zeros(rewards.shape)
    deviation = rewards.std(correction=ddof) + eps
    if guard:
        centred = group_center(rewards, group_size)
        return (centred / deviation).where(centred != 0, 0.0)  # with ε = 0 a flat batch is 0/0
    rewards_PG = rewards.view(-1, group_size)
    return ((rewards_PG - rewards_PG.mean(1, keepdim=True)) / deviation).view(-1)


def group_over_mean(rewards: Tensor, group_size: int) -> Tensor:
    """(r_i − μ) / μ within each group (MaxRL, arXiv:2602.02710, algorithm 1): (B,) -> (B,); 0 where μ is not above 0.

    0 in flat groups and for G = 1. Of rewards 0 and 1 it lies in [−1, G − 1]; of others it grows without bound as the
    mean nears 0.
    """
    means = rewards.view(-1, group_size).mean(1, keepdim=True).expand(-1, group_size).reshape(-1)
    centred = group_center(rewards, group_size)
    return (centred / means.clamp(min=FLAT)).masked_fill(means <= FLAT, 0.0)  # of NaN, NaN


def mixed_groups(correct: Tensor, group_size: int) -> Tensor:
    """(B,) bool -> (B,) bool: rows of groups that have right and wrong answers (DAPO, arXiv:2503.14476, eq. 11)."""
    correct_PG = correct.view(-1, group_size)
    mixed = correct_PG.any(1, keepdim=True) & ~correct_PG.all(1, keepdim=True)
    return mixed.expand(-1, group_size).reshape(-1)


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """r_i − mean of the other members (RLOO, arXiv:2402.14740): (B,) -> (B,); 0 for G = 1, which has no others."""
    if group_size == 1:
        return rewards.new_zeros(rewards.shape)
    return group_center(rewards, group_size) * (group_size / (group_size - 1))


def length_weighted_center(rewards: Tensor, lengths: Tensor, group_size: int) -> Tensor:
    """r_i − Σ_j l_j r_j / Σ_j l_j of its group (OPO, arXiv:2505.23585): (B,), (B,) -> (B,).

    0 in flat groups and for G = 1. A group without tokens has no such mean: its rows stay as they are, with no token to
    act on.
    """
    rewards_PG, lengths_PG = rewards.view(-1, group_size), lengths.view(-1, group_size)
    means = (rewards_PG * lengths_PG).sum(1, keepdim=True) / lengths_PG.sum(1, keepdim=True).clamp(min=1)
    return (rewards_PG - means).masked_fill(flat_groups(rewards, group_size), 0.0).view(-1)


def step_sums(x: Tensor, step_ids: Tensor, mask: Tensor) -> Tensor:
    """Σ of x over the tokens of each token's step: (B,T), (B,T) int in [0, T) -> (B,T)."""
    steps = step_ids.long()
    sums = x.new_zeros(x.shape).scatter_add(1, steps, x * mask)
    return sums.gather(1, steps) * mask


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """log π − log π_ref per token: unbiased, may be negative; as a loss its expected gradient is 0. (B,T)."""
    return logp - ref_logp


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """½ (log π − log π_ref)² per token: as a loss it has the gradient of KL(π‖π_ref) on policy. (B,T)."""
    return 0.5 * (logp - ref_logp) ** 2


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """π_ref/π − log(π_ref/π) − 1 per token: unbiased and never negative (DeepSeekMath eq. 4). (B,T)."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def ratio(logp: Tensor, old_logp: Tensor, log_clamp: float | None = None) -> Tensor:
    """ρ = exp(logp − old_logp), its logarithm bounded to ± ``log_clamp``: (B,T) -> (B,T)."""
    log_ratio = logp - old_logp
    return (log_ratio if log_clamp is None else log_ratio.clamp(-log_clamp, log_clamp)).exp()


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    log_clamp: float | None = None,
) -> Tensor:
    """min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A), to be maximised; ρ = exp(logp − old_logp). (B,T).

    PPO (Schulman et al. 2017, arXiv:1707.06347, eq. 7). ``dual_clip`` c > 1 bounds what a negative advantage can cost:
    max(·, c A) where A < 0 (Ye et al. 2020, arXiv:1912.09729, eq. 5). ``log_clamp`` bounds log ρ to ± itself.
    """
    log_ratio = logp - old_logp
    # far beyond the bound the minimum is the bound's, but e^100 is infinite in float32 and its gradient 0·∞; where
    # A < 0 and nothing bounds the cost, it stays infinite: such an update is skipped and counted
    bounded = log_ratio.clamp(max=LOG_LARGE)
    safe = bounded if dual_clip is not None else log_ratio.where(advantages < 0, bounded)
    rho = ratio(safe, safe.new_zeros(()), log_clamp)
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)
    surrogate = (rho * advantages).minimum(clipped * advantages)
    if dual_clip is None:
        return surrogate
    return surrogate.where(advantages >= 0, surrogate.maximum(dual_clip * advantages))


def sequence_logp(logp: Tensor, mask: Tensor) -> Tensor:
    """Σ_t log π of each answer, broadcast over its tokens: (B,T) -> (B,T). For losses of a whole answer."""
    return (logp * mask).sum(1, keepdim=True) * mask


def answer_mean(x: Tensor, mask: Tensor) -> Tensor:
    """1/|o| Σ_t x of each answer, broadcast over its tokens: (B,T) -> (B,T). For losses of a whole answer."""
    return (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1) * mask


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """max((V − R)², (V_old + clip(V − V_old, ±c) − R)²) per token; (V − R)² without a clip. (B,T)."""
    loss = (values - returns) ** 2
    if clip is None:
        return loss
    near = old_values + (values - old_values).clamp(-clip, clip)
    return loss.maximum((near - returns) ** 2)


def sequence_mean(mask: Tensor) -> Tensor:
    """mask / (B·len_i): mean over each answer's tokens, then over answers. (B,T) -> (B,T)."""
    return mask / (mask.shape[0] * mask.sum(1, keepdim=True).clamp(min=1))


def token_mean(mask: Tensor) -> Tensor:
    """mask / Σ mask: every token counts the same. (B,T) -> (B,T)."""
    return mask / mask.sum().clamp(min=1)


def constant_length(mask: Tensor, length: float) -> Tensor:
    """mask / (B·length): sums over tokens, divided by a constant; length = 1 gives Σ log π. (B,T) -> (B,T)."""
    return mask / (mask.shape[0] * length)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R) over masked tokens; 0 when the returns do not vary (the ratio has no meaning)."""
    residual = returns - values
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    error = masked_mean((residual - masked_mean(residual, mask)) ** 2, mask)
    return (1 - error / spread.clamp(min=1e-12)) * (spread > 1e-12)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): chance that k of n samples, c of them right, hold a right one.

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1). Raises ValueError unless 0 ≤ c ≤ n, 1 ≤ k ≤ n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
