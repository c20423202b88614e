"""Attention of completions that share their groups' prompts, each prompt's keys and values being there once.

Letters of shapes: P prompts of at most S tokens, M completions of each of at most T, K key heads with r query heads
each, d the size of a head. Padding of these grids is seen by padding alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_SCORES = 2**25  # elements of the score matrices that are kept whole; beyond, they are computed in blocks


def attend(
    q: Tensor, prompt: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor], bias: Tensor, softcap: float | None
) -> Tensor:
    """softmax(q·[prompt keys | own keys] + bias)·[prompt values | own values].

    Args:
        q: (P,K,M,r,T,d), scaled already.
        prompt: keys and values (P,K,S,d), seen by all M; None: there are none.
        own: keys and values (P,K,M,T,d).
        bias: (P or 1, T, S+T), 0 where a token may look, else −inf; S = 0 without ``prompt``.
        softcap: scores s become softcap · tanh(s / softcap).
    Returns: (P,K,M,r,T,d).
    """
    P, K, M, r, T, _ = q.shape
    width = bias.shape[-1]
    if softcap is None and (q.is_cuda or P * K * M * r * T * width > LARGEST_SCORES):
        return _blockwise(q, prompt, own, bias)
    if softcap is None:
        kp, vp = prompt if prompt is not None else (None, None)
        out: Tensor = _Attention.apply(q, kp, vp, *own, bias)
        return out
    return _plain(q, prompt, own, bias, softcap)


def _scores(q: Tensor, kp: Tensor | None, ko: Tensor) -> Tensor:
    """(P,K,M,r,T,S+T): the prompt's part is one product for all members of a group."""
    P, K, M, r, T, d = q.shape
    own = torch.bmm(q.reshape(P * K * M, r * T, d), ko.reshape(P * K * M, T, d).mT).view(P, K, M, r, T, T)
    if kp is None:
        return own
    S = kp.shape[2]
    prompt = torch.bmm(q.reshape(P * K, M * r * T, d), kp.reshape(P * K, S, d).mT).view(P, K, M, r, T, S)
    return torch.cat([prompt, own], dim=-1)


def _weighted(p: Tensor, vp: Tensor | None, vo: Tensor) -> Tensor:
    """(P,K,M,r,T,d): values weighted by (P,K,M,r,T,S+T)."""
    P, K, M, r, T, width = p.shape
    S, d = width - T, vo.shape[-1]
    own = torch.bmm(p[..., S:].reshape(P * K * M, r * T, T), vo.reshape(P * K * M, T, d))
    if vp is None:
        return own.view(P, K, M, r, T, d)
    out = torch.bmm(p[..., :S].reshape(P * K, M * r * T, S), vp.reshape(P * K, S, d))
    out.view(P * K * M, r * T, d).add_(own)
    return out.view(P, K, M, r, T, d)


def _spread_bias(bias: Tensor) -> Tensor:
    return bias[:, None, None, None]  # over K, M and r


class _Attention(torch.autograd.Function):
    """The plain formula with few passes over the scores: they, not the products, are what takes time on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kp: Tensor | None, vp: Tensor | None, ko: Tensor, vo: Tensor, bias: Tensor
    ) -> Tensor:
        scores = _scores(q, kp, ko)
        p = torch.softmax(scores.add_(_spread_bias(bias)), dim=-1)
        ctx.save_for_backward(q, kp, vp, ko, vo, p)
        return _weighted(p, vp, vo)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, kp, vp, ko, vo, p = ctx.saved_tensors
        P, K, M, r, T, d = q.shape
        S = p.shape[-1] - T
        grad = grads[0].contiguous()
        p_own = p[..., S:].reshape(P * K * M, r * T, T)
        grad_vo = torch.bmm(p_own.mT, grad.view(P * K * M, r * T, d)).view(P, K, M, T, d)
        scores = torch._softmax_backward_data(_scores(grad, vp, vo), p, -1, p.dtype)
        s_own = scores[..., S:].reshape(P * K * M, r * T, T)
        grad_ko = torch.bmm(s_own.mT, q.reshape(P * K * M, r * T, d)).view(P, K, M, T, d)
        grad_q = _weighted(scores, kp, ko)
        grad_kp = grad_vp = None
        if kp is not None:
            flat_q, flat_grad = q.reshape(P * K, M * r * T, d), grad.view(P * K, M * r * T, d)
            grad_vp = torch.bmm(p[..., :S].reshape(P * K, M * r * T, S).mT, flat_grad).view(P, K, S, d)
            grad_kp = torch.bmm(scores[..., :S].reshape(P * K, M * r * T, S).mT, flat_q).view(P, K, S, d)
        return grad_q, grad_kp, grad_vp, grad_ko, grad_vo, None


def _plain(
    q: Tensor, prompt: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor], bias: Tensor, softcap: float | None
) -> Tensor:
    """The formula by autograd's own operations: for capped scores, and what the others are tested against."""
    scores = q @ own[0][:, :, :, None].mT
    if prompt is not None:
        scores = torch.cat([q @ prompt[0][:, :, None, None].mT, scores], dim=-1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    p = torch.softmax(scores + _spread_bias(bias), dim=-1)
    out = p[..., -own[0].shape[-2] :] @ own[1][:, :, :, None]
    if prompt is not None:
        out = out + p[..., : prompt[0].shape[-2]] @ prompt[1][:, :, None, None]
    return out


def _blockwise(q: Tensor, prompt: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
    """By torch's fused attention, which never holds the scores; prompts' keys are repeated for it."""
    P, K, M, r, T, d = q.shape

    def joined(shared: Tensor | None, mine: Tensor) -> Tensor:
        if shared is not None:
            mine = torch.cat([shared[:, :, None].expand(-1, -1, M, -1, -1), mine], dim=3)
        width = mine.shape[3]
        rows = mine.transpose(1, 2)[:, :, :, None].expand(P, M, K, r, width, d)
        return rows.reshape(P * M, K * r, width, d)

    keys = joined(None if prompt is None else prompt[0], own[0])
    values = joined(None if prompt is None else prompt[1], own[1])
    rows = q.permute(0, 2, 1, 3, 4, 5).reshape(P * M, K * r, T, d)
    seen = bias[:, None].expand(P, M, *bias.shape[1:]).reshape(P * M, 1, *bias.shape[1:])
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen, scale=1.0)
    return out.view(P, M, K, r, T, d).permute(0, 2, 1, 3, 4, 5)
