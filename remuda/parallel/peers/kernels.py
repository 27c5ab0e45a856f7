"""Kernels that write into the memory of other GPUs of the host and wait for what those write into ours.

`peer_table` holds the address of every rank's buffer as mapped into this process. A buffer has three slots in turn; a
row of a slot that still holds the sentinel -0.0 has not arrived: the data is its own flag, so one kernel both sends
and receives without a barrier (the scheme that NCCL calls LL and TensorRT-LLM Lamport). -0.0 itself is sent as +0.0.

Of the three slots one is in use, and the one used before it is cleared. It is written again two calls later, which
no rank begins before it has received from us in the call between: so nobody writes into a slot before it is clear.
Each row counts its calls in device memory (`epoch_ptr`), so that captured graphs of any batch sizes can be mixed, as
long as all ranks run the same ones in the same order. Sums run in rank order: all ranks get equal bits.

A wait that lasts for `LIMIT` looks gives up and writes 1 to `error_ptr`: a dead peer must not hang the device for good.
T tokens (rows), H hidden size, R ranks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _address(table, index, dtype: tl.constexpr):
    """Pointer to the buffer of rank `index`."""
    return tl.multiple_of(tl.load(table + index).to(tl.pointer_type(dtype)), 16)


@triton.jit
def _send_row(x_bits, peer_table, slot, row, columns, mask, SENTINEL: tl.constexpr, BITS: tl.constexpr,
              RANK: tl.constexpr, WORLD: tl.constexpr, CAPACITY: tl.constexpr, H: tl.constexpr):  # fmt: skip
    """Write a row into every rank's buffer, own included, beginning with the own one so that ranks do not collide."""
    bits = tl.where(x_bits == SENTINEL, 0, x_bits).to(BITS)
    for i in tl.static_range(WORLD):
        peer = _address(peer_table, (RANK + i) % WORLD, BITS)
        tl.store(peer + ((slot * WORLD + RANK) * CAPACITY + row) * H + columns, bits, mask=mask)


@triton.jit
def _clear_row(own, slot, row, columns, mask, SENTINEL: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
               WORLD: tl.constexpr, CAPACITY: tl.constexpr, H: tl.constexpr):  # fmt: skip
    empty = tl.full([BLOCK], SENTINEL, BITS)
    for i in tl.static_range(WORLD):
        tl.store(own + ((slot * WORLD + i) * CAPACITY + row) * H + columns, empty, mask=mask)


@triton.jit
def _sum_of_row(start, own, slot, row, columns, mask, error_ptr, SENTINEL: tl.constexpr, DTYPE: tl.constexpr,
                BLOCK: tl.constexpr, WORLD: tl.constexpr, CAPACITY: tl.constexpr, H: tl.constexpr,
                LIMIT: tl.constexpr):  # fmt: skip
    """start + the row of every rank, float32, once all have come."""
    total = start
    looks = 0
    missing = 1
    while (missing > 0) & (looks < LIMIT):
        total = start
        absent = tl.zeros([BLOCK], tl.int32)
        for i in tl.static_range(WORLD):
            at = own + ((slot * WORLD + i) * CAPACITY + row) * H + columns
            bits = tl.load(at, mask=mask, other=0, volatile=True)
            absent |= (bits == SENTINEL).to(tl.int32)
            total += bits.to(DTYPE, bitcast=True).to(tl.float32)
        missing = tl.max(absent, axis=0)
        looks += 1
    if missing > 0:
        tl.store(error_ptr, 1)
    return total


@triton.jit
def all_reduce_add_norm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, peer_table, epoch_ptr, error_ptr, eps,
    RANK: tl.constexpr, WORLD: tl.constexpr, CAPACITY: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, BITS: tl.constexpr, SENTINEL: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """residual += sum of x over ranks; with NORM also y = rms_norm(residual) * weight. One program a row."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < H
    weight = columns
    if NORM:  # a constant: may be read before the kernel before us has ended
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    epoch = tl.load(epoch_ptr + row)
    bits = tl.load(x_ptr.to(tl.pointer_type(BITS)) + row * H + columns, mask=mask, other=0)
    _send_row(bits, peer_table, epoch % 3, row, columns, mask, SENTINEL, BITS, RANK, WORLD, CAPACITY, H)
    residual = tl.load(residual_ptr + row * H + columns, mask=mask, other=0.0).to(tl.float32)
    own = _address(peer_table, RANK, BITS)
    _clear_row(own, (epoch + 2) % 3, row, columns, mask, SENTINEL, BITS, BLOCK, WORLD, CAPACITY, H)
    total = _sum_of_row(residual, own, epoch % 3, row, columns, mask, error_ptr, SENTINEL, DTYPE, BLOCK, WORLD,
                        CAPACITY, H, LIMIT)  # fmt: skip
    rounded = total.to(DTYPE)
    tl.store(residual_ptr + row * H + columns, rounded, mask=mask)
    if NORM:
        exact = tl.where(mask, rounded.to(tl.float32), 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(exact * exact, axis=0) / H + eps)
        tl.store(y_ptr + row * H + columns, (exact * scale * weight).to(DTYPE), mask=mask)
    tl.store(epoch_ptr + row, epoch + 1)


@triton.jit
def all_reduce(
    x_ptr, peer_table, epoch_ptr, error_ptr,
    RANK: tl.constexpr, WORLD: tl.constexpr, CAPACITY: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, BITS: tl.constexpr, SENTINEL: tl.constexpr, LIMIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x = sum of x over ranks, in place. Shares buffers and epochs with `all_reduce_add_norm`."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < H
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    epoch = tl.load(epoch_ptr + row)
    bits = tl.load(x_ptr.to(tl.pointer_type(BITS)) + row * H + columns, mask=mask, other=0)
    _send_row(bits, peer_table, epoch % 3, row, columns, mask, SENTINEL, BITS, RANK, WORLD, CAPACITY, H)
    own = _address(peer_table, RANK, BITS)
    _clear_row(own, (epoch + 2) % 3, row, columns, mask, SENTINEL, BITS, BLOCK, WORLD, CAPACITY, H)
    total = _sum_of_row(tl.zeros([BLOCK], tl.float32), own, epoch % 3, row, columns, mask, error_ptr, SENTINEL, DTYPE,
                        BLOCK, WORLD, CAPACITY, H, LIMIT)  # fmt: skip
    tl.store(x_ptr + row * H + columns, total.to(DTYPE), mask=mask)
    tl.store(epoch_ptr + row, epoch + 1)


@triton.jit(do_not_specialize=["count"])
def greatest_key(
    key_ptr, peer_table, epoch_ptr, error_ptr, count,
    RANK: tl.constexpr, WORLD: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr, LIMIT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """key = the greatest of all ranks' keys, in place: greedy tokens of a vocabulary cut over ranks. One program.

    Keys are int64 and never 0, which means "not yet"; see `remuda/kernels/head/torch.py`.
    """
    at = tl.arange(0, BLOCK)
    mask = at < count
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    epoch = tl.load(epoch_ptr)
    slot = epoch % 3
    last = (epoch + 2) % 3
    key = tl.load(key_ptr + at, mask=mask, other=1)
    own = _address(peer_table, RANK, tl.int64)
    every = at < CAPACITY  # slots are cleared whole: the next call may have more rows
    for i in tl.static_range(WORLD):
        peer = _address(peer_table, (RANK + i) % WORLD, tl.int64)
        tl.store(peer + (slot * WORLD + RANK) * CAPACITY + at, key, mask=mask)
        tl.store(own + (last * WORLD + i) * CAPACITY + at, tl.zeros([BLOCK], tl.int64), mask=every)
    best = key
    looks = 0
    missing = 1
    while (missing > 0) & (looks < LIMIT):
        best = key  # anew: a key that had not arrived was 0, which is greater than a negative one
        absent = tl.zeros([BLOCK], tl.int32)
        for i in tl.static_range(WORLD):
            theirs = tl.load(own + (slot * WORLD + i) * CAPACITY + at, mask=mask, other=1, volatile=True)
            absent |= (theirs == 0).to(tl.int32)
            best = tl.maximum(best, theirs)
        missing = tl.max(absent, axis=0)
        looks += 1
    if missing > 0:
        tl.store(error_ptr, 1)
    tl.store(key_ptr + at, best, mask=mask)
    tl.store(epoch_ptr, epoch + 1)


@triton.jit(do_not_specialize=["target_address", "flag_address", "words", "epoch"])
def put(source_ptr, target_address, flag_address, words, epoch, BLOCK: tl.constexpr):
    """Copy `words` int32 to an address on another GPU; every program then sets its own flag there to `epoch`."""
    program = tl.program_id(0)
    target = target_address.to(tl.pointer_type(tl.int32))
    start = program.to(tl.int64) * BLOCK
    while start < words:
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source_ptr + at, mask=at < words), mask=at < words)
        start += tl.num_programs(0) * BLOCK
    tl.debug_barrier()
    flag = flag_address.to(tl.pointer_type(tl.int32)) + program
    tl.atomic_xchg(flag, epoch, sem="release", scope="sys")


@triton.jit
def _look(flags, ON_DEVICE: tl.constexpr):
    if ON_DEVICE:
        return tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b32 $0, [$1];", "=r,l", [flags], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        return tl.load(flags, volatile=True)


@triton.jit(do_not_specialize=["programs", "epoch"])
def await_flags(
    flag_ptr, error_ptr, programs, epoch, BLOCK: tl.constexpr, LIMIT: tl.constexpr, ON_DEVICE: tl.constexpr
):
    """One small program that ends once all flags of a `put` have reached `epoch`; kernels after it see its data."""
    at = tl.arange(0, BLOCK)
    flags = flag_ptr + tl.where(at < programs, at, 0)
    looks = 0
    seen = tl.min(_look(flags, ON_DEVICE), axis=0)
    while (seen < epoch) & (looks < LIMIT):
        seen = tl.min(_look(flags, ON_DEVICE), axis=0)
        looks += 1
    if seen < epoch:
        tl.store(error_ptr, 1)
