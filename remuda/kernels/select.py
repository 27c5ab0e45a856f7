"""Which implementation of each operation serves: the tables, filled. Implementations are imported when asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from remuda.kernels.table import AttentionKernels, HeadLayout, KernelTable, PagedAttention
from remuda.protocol.errors import ConfigError


def kernel_table(device: str, dtype: str) -> KernelTable:
    """What serves `dtype` on a kind of device (cpu, cuda:0) from the start.

    Raises ConfigError for a device without kernels.
    """
    match device.split(":")[0]:
        case "cpu":
            return torch_table()
        case "cuda":
            return cuda_table()
    raise ConfigError(f"there are no kernels for device {device!r}: use cpu or cuda")


def torch_table() -> KernelTable:
    """Torch operations: any device and dtype, from the first moment on."""
    from remuda.kernels.activation.torch import gelu, silu_mul
    from remuda.kernels.attention.torch import paged_attention
    from remuda.kernels.head.torch import head_keys, keep_tokens
    from remuda.kernels.linear.int4 import Int4Linear
    from remuda.kernels.linear.torch import Linear
    from remuda.kernels.metadata.torch import decode_inputs
    from remuda.kernels.moe.int4 import Int4Experts
    from remuda.kernels.moe.torch import Experts as TorchExperts
    from remuda.kernels.moe.torch import route_sigmoid, route_softmax
    from remuda.kernels.norm.torch import add_rms_norm, layer_norm, rms_norm
    from remuda.kernels.rotary.torch import RopeAngles, rope_kv
    from remuda.kernels.vision.torch import embed_patches, patch_angles, patch_rows, tile_attention
    from remuda.kernels.vocab.torch import embed_tokens, embedding

    attention = AttentionKernels(rope_kv, paged_attention)
    return KernelTable(
        name="torch",
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        silu_mul=silu_mul,
        gelu=gelu,
        embedding=embedding,
        embed_tokens=embed_tokens,
        make_rope_angles=RopeAngles,
        decode_inputs=decode_inputs,
        attention=lambda layout, window=None: attention,
        route_sigmoid=route_sigmoid,
        route_softmax=route_softmax,
        make_linear=Linear,
        make_experts=TorchExperts,
        make_int4_linear=Int4Linear,
        make_int4_experts=Int4Experts,
        fuse_sigmoid_moe=lambda parts: None,
        repack_linear=lambda linear: linear,
        repack_experts=lambda experts: experts,
        head_keys=head_keys,
        keep_tokens=keep_tokens,
        patch_rows=patch_rows,
        embed_patches=embed_patches,
        patch_angles=patch_angles,
        tile_attention=tile_attention,
    )


def native_table() -> KernelTable:
    """C for bfloat16 on a CPU, and torch for what C does not have; `native.runtime` must have loaded the library."""
    from remuda.kernels.activation.native import silu_mul
    from remuda.kernels.attention.native import paged_attention, serves
    from remuda.kernels.linear.native import make_linear, repack_linear
    from remuda.kernels.moe.native import make_experts, repack_experts, route_sigmoid, route_softmax
    from remuda.kernels.norm.native import add_rms_norm, rms_norm
    from remuda.kernels.rotary.native import rope_kv

    torch = torch_table()
    attention = AttentionKernels(rope_kv, paged_attention)

    def attention_for(layout: HeadLayout, window: int | None = None) -> AttentionKernels:
        return attention if serves(layout.head_dim, window) else torch.attention(layout, window)

    return replace(
        torch,
        name="native",
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        silu_mul=silu_mul,
        attention=attention_for,
        route_sigmoid=route_sigmoid,
        route_softmax=route_softmax,
        make_linear=make_linear,
        make_experts=make_experts,
        repack_linear=repack_linear,
        repack_experts=repack_experts,
    )


def cuda_table(pdl: bool | None = None) -> KernelTable:
    """Triton and cuBLAS on a GPU from Ampere on; torch where Triton's tiles do not fit. Any dtype.

    ``pdl``: kernels start while those before them end (`device.early`); None: where the card can.
    """
    from remuda.kernels.activation.triton import silu_mul
    from remuda.kernels.attention import flash3
    from remuda.kernels.attention.triton import paged_attention, serves
    from remuda.kernels.device import starts_early
    from remuda.kernels.head.triton import head_keys, keep_tokens
    from remuda.kernels.linear.cuda import make_linear
    from remuda.kernels.linear.triton_int4 import StreamedInt4Linear
    from remuda.kernels.metadata.triton import decode_inputs
    from remuda.kernels.moe.triton import Experts as TritonExperts
    from remuda.kernels.moe.triton import Int4Experts as TritonInt4Experts
    from remuda.kernels.moe.triton import fuse_sigmoid_moe, route_sigmoid, route_softmax
    from remuda.kernels.norm.triton import add_rms_norm, rms_norm
    from remuda.kernels.rotary.triton import RopeAngles, rope_kv
    from remuda.kernels.vocab.triton import embed_tokens

    torch = torch_table()
    pdl = starts_early() if pdl is None else pdl
    attend: PagedAttention = flash3.FlashAttention(pdl) if flash3.available() else partial(paged_attention, pdl=pdl)
    attention = AttentionKernels(partial(rope_kv, pdl=pdl), attend)

    def attention_for(layout: HeadLayout, window: int | None = None) -> AttentionKernels:
        return attention if serves(layout.head_dim) else torch.attention(layout, window)

    return replace(
        torch,
        name="cuda",
        rms_norm=partial(rms_norm, pdl=pdl),
        add_rms_norm=partial(add_rms_norm, pdl=pdl),
        silu_mul=partial(silu_mul, pdl=pdl),
        embed_tokens=partial(embed_tokens, pdl=pdl),
        make_rope_angles=partial(RopeAngles, pdl=pdl),
        decode_inputs=partial(decode_inputs, pdl=pdl),
        attention=attention_for,
        route_sigmoid=partial(route_sigmoid, pdl=pdl),
        route_softmax=partial(route_softmax, pdl=pdl),
        make_linear=partial(make_linear, pdl=pdl),
        make_experts=partial(TritonExperts, pdl=pdl),
        head_keys=partial(head_keys, pdl=pdl),
        keep_tokens=partial(keep_tokens, pdl=pdl),
        fuse_sigmoid_moe=partial(fuse_sigmoid_moe, pdl=pdl),
        make_int4_linear=StreamedInt4Linear,
        make_int4_experts=TritonInt4Experts,
    )
