"""What `torch.nn.attention.varlen.varlen_attn` computes, in plain operations: torch has it for GPUs only."""

from __future__ import annotations

from functools import wraps

import torch
from torch._subclasses.fake_tensor import FakeTensor


def varlen_attn(
    query_THD,
    key_SND,
    value_SND,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    """Attention within each segment; a causal one counts from its end (flash-attn 2.1: bottom right).

    It is as strict as the kernel, which reads wrong memory where it is called wrongly.
    """
    assert window_size in ((-1, -1), (-1, 0))
    assert return_aux is None
    groups = query_THD.shape[1] // key_SND.shape[1]
    assert groups == 1 or enable_gqa
    assert query_THD.ndim == 3
    assert key_SND.shape == value_SND.shape
    assert query_THD.dtype == key_SND.dtype == value_SND.dtype
    assert query_THD.device == key_SND.device == value_SND.device == cu_seq_q.device == cu_seq_k.device
    assert all(x.stride(-1) == 1 for x in (query_THD, key_SND, value_SND))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous()
    assert cu_seq_k.is_contiguous()
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert int(cu_seq_q[0]) == int(cu_seq_k[0]) == 0
    assert (sum(queries), sum(keys)) == (len(query_THD), len(key_SND))
    assert (max(queries), max(keys)) == (max_q, max_k)
    outputs = []
    segments = zip(query_THD.split(queries), key_SND.split(keys), value_SND.split(keys), strict=True)
    for q_tHD, k_sND, v_sND in segments:
        q, k, v = (x.float().transpose(0, 1) for x in (q_tHD, k_sND, v_sND))
        k, v = (x[:, None].expand(-1, groups, -1, -1).flatten(0, 1) for x in (k, v))
        scores = q @ k.transpose(1, 2) * (query_THD.shape[-1] ** -0.5 if scale is None else scale)
        if window_size == (-1, 0):
            length, width = scores.shape[1:]
            assert width >= length
            seen = torch.ones(length, width, dtype=torch.bool, device=scores.device).tril(width - length)
            scores = scores.masked_fill(~seen, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).to(query_THD.dtype)


def make_device_kernel(fakecuda):
    """`varlen_attn` for tensors of the simulated device, counted as the kernel is: one launch, and one backward."""
    from torch.nn.attention import varlen

    original = varlen.varlen_attn

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, options, cu_seq_q, cu_seq_k, max_q, max_k, *states):
            assert all(x.dtype in (torch.float16, torch.bfloat16) for x in states)
            assert fakecuda.SM >= (8, 0)
            ends = [x.elem for x in (cu_seq_q, cu_seq_k)]
            with torch.enable_grad():
                inputs = [x.elem.detach().requires_grad_() for x in states]
                output = varlen_attn(*inputs, *ends, max_q, max_k, **options)
            ctx.tensors = inputs, output
            Kernel.count("varlen_attn", *states, output)
            return fakecuda.Cuda(output.detach())

        @staticmethod
        def backward(ctx, gradient):
            inputs, output = ctx.tensors
            gradients = torch.autograd.grad(output, inputs, gradient.elem)
            Kernel.count("varlen_attn_backward", *inputs, gradient, *gradients)
            return (None,) * 5 + tuple(fakecuda.Cuda(x) for x in gradients)

        @staticmethod
        def count(name, *tensors):
            if fakecuda.SYNC.on:
                fakecuda.SYNC.ops[name] += 1
                fakecuda.SYNC.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)

    @wraps(varlen_attn)
    def call(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
        if isinstance(query, FakeTensor):  # the memory plan traces a step
            return original(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)
        return Kernel.apply(options, cu_seq_q, cu_seq_k, max_q, max_k, query, key, value)

    return call
