"""Plans to tensors: the metadata of mixed and decode-only steps, and what it costs."""

from __future__ import annotations

import time

import torch

from remuda.parallel.topology import Topology
from remuda.planner.host import free_host_bytes
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, PageGrant, StepPlan
from remuda.worker.cpu.memory import pages_on_host
from remuda.worker.inputs import build_batch, token_rows
from remuda.worker.kv_pool import KVPool, page_of
from remuda.worker.state import BatchState
from tests.worker.fakes import engine_config, model_config

CONFIG = engine_config(model_config())
PLACE = Topology(1, 1, 0, 0, 0, 4, 4)


def pool(pages: int = 50) -> KVPool:
    return KVPool(CONFIG.model, CONFIG.cache, PLACE, pages, pages_on_host)


def admit(slot: int, tokens: list[int], computed: int, pages: list[list[int]]) -> NewSequence:
    return NewSequence(slot, tokens, len(tokens), computed, pages, SamplingParams())


def test_a_mixed_step() -> None:
    state = BatchState(4, 32, groups=2, block_size=4)
    plan = StepPlan(
        0, [2, 0], [1, 6], [],
        [admit(2, [7, 8, 9, 10, 11], 4, [[5, 6], [0, 9]]), admit(0, list(range(20, 28)), 0, [[1], [2]])],
        [PageGrant(0, [[3], [4]])],
    )  # fmt: skip
    state.apply(plan)
    rows = state.rows(plan)
    row_T, positions_T = token_rows(rows)
    batch = build_batch(state, rows, row_T, positions_T, pool())
    assert rows.samples_S.tolist() == [True, False]
    assert rows.slots_S[row_T].tolist() == [2, 0, 0, 0, 0, 0, 0]
    assert batch.positions_T.tolist() == [4, 0, 1, 2, 3, 4, 5] and batch.positions_T.dtype == torch.int64
    assert batch.query_start_S1.tolist() == [0, 1, 7] and batch.query_start_S1.dtype == torch.int32
    assert batch.context_S.tolist() == [5, 6] and batch.context_S.dtype == torch.int32
    assert batch.tables_GSB.tolist() == [[[5, 6], [1, 3]], [[0, 9], [2, 4]]]
    assert batch.places_GT.tolist() == [[24, 4, 5, 6, 7, 12, 13], [36, 8, 9, 10, 11, 16, 17]]
    assert (batch.max_query, batch.num_decodes, batch.block_size) == (6, 1, 4)


def test_leading_decodes_end_at_the_first_prompt() -> None:
    state = BatchState(4, 32, groups=1, block_size=4)
    new = [admit(slot, [1, 2, 3], 0, [[slot + 1]]) for slot in range(3)]
    for counts, leading in (([1, 1, 1], 3), ([3, 1, 1], 0), ([1, 3, 1], 1)):
        plan = StepPlan(0, [0, 1, 2], counts, new=new)
        state.apply(plan)
        rows = state.rows(plan)
        assert build_batch(state, rows, *token_rows(rows), pool()).num_decodes == leading


def test_untouched_pages_take_no_memory_and_hold_zeros() -> None:
    def resident_kib() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    before = resident_kib()
    big = pool(pages=1_000_000)  # 512 MB
    assert sum(k.nbytes + v.nbytes for k, v in big.kv) == 1_000_000 * page_of(CONFIG.model, CONFIG.cache, PLACE).nbytes
    assert resident_kib() - before < 20_000
    assert not big.kv[0][0][999_999].any()


def test_free_memory_respects_the_control_group(tmp_path) -> None:  # type: ignore[no-untyped-def]
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert free_host_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_host_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_host_bytes(meminfo, tmp_path) == 2_000_000


def test_sixteen_decode_rows_are_prepared_quickly() -> None:
    """CPU time of the best of many, so that a busy machine does not matter; the limit is several times the usual."""
    state = BatchState(16, 512, groups=4, block_size=16)
    new = [admit(slot, [1] * 300, 299, [list(range(1, 21))] * 4) for slot in range(16)]
    plan = StepPlan(0, list(range(16)), [1] * 16, new=new)
    state.apply(plan)
    kv, best = pool(), 1.0
    for _ in range(300):
        start = time.process_time()
        rows = state.rows(plan)
        row_T, positions_T = token_rows(rows)
        build_batch(state, rows, row_T, positions_T, kv)
        best = min(best, time.process_time() - start)
    assert best < 300e-6
