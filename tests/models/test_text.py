"""Logits of every architecture, layout and way of feeding a prompt against transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from remuda.models.registry import TINY_KINDS
from remuda.tiny import make_tiny
from tests.models.conftest import PROMPT
from tests.models.reference import load_reference, reference_logits
from tests.models.replica import Replica

TOLERANCE = 1e-4  # natural-log probabilities; 3e-5 is what float32 sums in another order give


def in_pieces(replica: Replica, name: str, sizes: list[int]) -> torch.Tensor:
    """Log-probabilities of PROMPT, fed in pieces of the given sizes (the last one as often as needed)."""
    logits, at, pieces = [], 0, list(sizes)
    while at < len(PROMPT):
        size = pieces.pop(0) if len(pieces) > 1 else pieces[0]
        logits.append(replica.forward([(name, PROMPT[at : at + size])]))
        at += size
    return torch.cat(logits).log_softmax(-1)


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_whole_prompt_pieces_of_seven_and_decoding(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], kind: str
) -> None:
    replica, want = Replica(tiny(kind)), expected(kind)
    assert (in_pieces(replica, "whole", [1000]) - want).abs().max() < TOLERANCE
    assert (in_pieces(replica, "sevens", [7]) - want).abs().max() < TOLERANCE
    assert (in_pieces(replica, "decoded", [100, 1]) - want).abs().max() < TOLERANCE


LAYOUTS = [
    {"tp": 2},
    {"tp": 8},
    {"tp": 4, "partition": (3, 2, 3)},
    {"tp": 2, "ep": True, "partition": (1, 7)},
    {"tp": 1, "partition": (1,) * 8},
    {"tp": 8, "partition": (5, 3), "ep": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["maverick", "scout-fp8"])
def test_layouts(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], kind: str, layout: dict[str, object]
) -> None:
    replica = Replica(tiny(kind), **layout)  # type: ignore[arg-type]
    assert (in_pieces(replica, "a", [50, 60, 29, 1]) - expected(kind)).abs().max() < TOLERANCE


def test_llama3_on_more_ranks_than_key_value_heads(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor]
) -> None:
    replica = Replica(tiny("llama3"), tp=8, partition=(4, 2))
    assert (in_pieces(replica, "a", [50, 60, 29, 1]) - expected("llama3")).abs().max() < TOLERANCE


@pytest.mark.parametrize("block_size", [5, 16, 128])
def test_mixed_rows_in_one_batch(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], block_size: int
) -> None:
    """Decode rows at both sides of a chunk's border beside pieces of prompts that cross it."""
    replica, want = Replica(tiny("maverick"), block_size=block_size), expected("maverick")
    starts = {"a": 63, "b": 64, "c": 127, "d": 1, "e": 60, "f": 0}
    for name, computed in starts.items():
        if computed:
            replica.forward([(name, PROMPT[:computed])])
    counts = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 9, "f": 130}
    rows = [(name, PROMPT[starts[name] : starts[name] + count]) for name, count in counts.items()]
    got = replica.forward(rows).log_softmax(-1)
    at = 0
    for name, count in counts.items():
        difference = got[at : at + count] - want[starts[name] : starts[name] + count]
        assert difference.abs().max() < TOLERANCE, name
        at += count


@pytest.mark.parametrize("layout", [{"tp": 8}, {"tp": 2, "partition": (2, 2)}], ids=str)
def test_a_vocabulary_that_the_ranks_do_not_divide(tmp_path: Path, layout: dict[str, object]) -> None:
    make_tiny("maverick", tmp_path, text={"num_hidden_layers": 4, "vocab_size": 1101})
    want = reference_logits(load_reference(tmp_path), PROMPT[:20]).log_softmax(-1)
    got = Replica(tmp_path, **layout).forward([("a", PROMPT[:20])]).log_softmax(-1)  # type: ignore[arg-type]
    assert (got - want).abs().max() < TOLERANCE


@pytest.mark.parametrize("layout", [{"tp": 2}, {"partition": (2, 2)}], ids=str)
def test_tied_embeddings(tmp_path: Path, layout: dict[str, object]) -> None:
    make_tiny("llama3", tmp_path, text={"num_hidden_layers": 4, "tie_word_embeddings": True})
    want = reference_logits(load_reference(tmp_path), PROMPT[:20])
    got = Replica(tmp_path, **layout).forward([("a", PROMPT[:20])])  # type: ignore[arg-type]
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-4)  # the unscaled embedding makes logits of a hundred


def test_an_attention_chunk_that_no_block_divides(tmp_path: Path) -> None:
    make_tiny("scout", tmp_path, text={"attention_chunk_size": 37, "num_hidden_layers": 4})
    want = reference_logits(load_reference(tmp_path), PROMPT).log_softmax(-1)
    got = in_pieces(Replica(tmp_path), "a", [50, 60, 20, 1])
    assert (got - want).abs().max() < TOLERANCE


def test_two_choices_per_token(tmp_path: Path) -> None:
    make_tiny("maverick", tmp_path, text={"num_experts_per_tok": 2, "num_hidden_layers": 2})
    want = reference_logits(load_reference(tmp_path), PROMPT).log_softmax(-1)
    for layout in ({}, {"tp": 4, "ep": True}):
        got = Replica(tmp_path, **layout).forward([("a", PROMPT)]).log_softmax(-1)  # type: ignore[arg-type]
        assert (got - want).abs().max() < TOLERANCE


def test_experts_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    make_tiny("scout", tmp_path, text={"num_local_experts": 6, "num_hidden_layers": 2})
    want = reference_logits(load_reference(tmp_path), PROMPT).log_softmax(-1)
    got = Replica(tmp_path, tp=4, ep=True).forward([("a", PROMPT)]).log_softmax(-1)
    assert (got - want).abs().max() < TOLERANCE


def test_bfloat16_stays_near_float32(tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor]) -> None:
    want = expected("maverick")
    got = in_pieces(Replica(tiny("maverick"), dtype="bfloat16", tp=2), "a", [50, 60, 29, 1])
    best = want.topk(5, dim=-1).indices
    difference = (got.gather(1, best) - want.gather(1, best)).abs()
    assert difference.mean() < 0.1 and difference.quantile(0.99) < 0.4
    lead = want.topk(2, dim=-1).values
    clear = lead[:, 0] - lead[:, 1] > 0.5
    assert torch.equal(got.argmax(-1)[clear], want.argmax(-1)[clear])


@pytest.mark.parametrize("kind", ["maverick", "scout"])
def test_a_checkpoint_that_transformers_has_saved_again(tiny: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """Same tensors under transformers 5's config keys, in float32 and one file."""
    reference = load_reference(tiny(kind))
    reference.save_pretrained(tmp_path)
    want = reference_logits(reference, PROMPT).log_softmax(-1)
    got = Replica(tmp_path, tp=2).forward([("a", PROMPT)]).log_softmax(-1)
    assert (got - want).abs().max() < TOLERANCE
