"""The training model is the published architecture: its export, loaded by transformers, gives the same logits."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from tests.models.reference import load_reference
from training.architecture import TEXT
from training.attention import span_attention
from training.examples import Encoder, Example
from training.experts import run_experts, silu_mul, sorted_places
from training.export import read_weights, write_fixed_files, write_weights
from training.model import DRAFT_TAPS, HIDDEN, DemoModel, Functions
from training.muon import orthogonal
from training.packing import RowShape, pack
from training.problems.held_out import held_out_problems
from training.problems.problem import assistant
from training.problems.recall import needle
from training.train import CHECKPOINT


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoModel, Path]:
    """A random model in which every part matters, and its checkpoint."""
    torch.manual_seed(0)
    model = DemoModel()
    for name, parameter in model.named_parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            parameter.data *= 5
    folder = tmp_path_factory.mktemp("demo")
    for file in CHECKPOINT.glob("*"):
        if not file.name.startswith("model"):
            (folder / file.name).write_bytes(file.read_bytes())
    write_weights(model, folder)
    read_weights(model, folder)  # the rounded weights
    return model, folder


def examples() -> list[Example]:
    """Longer than a chunk, with a picture of one tile, with one of several, and a plain one."""
    encode = Encoder(CHECKPOINT)
    pictures = held_out_problems("images", 40, seed=0)
    wide = next(p for p in pictures if p.variant == "wide")
    single = next(p for p in pictures if p.variant == "colour")
    problems = [needle(Random(1), 1), single, wide, held_out_problems("arithmetic", 1, seed=0)[0]]
    return [encode([*p.messages, assistant(p.answer)], []) for p in problems]


def test_export_gives_equal_logits_in_transformers(exported: tuple[DemoModel, Path]) -> None:
    model, folder = exported
    packed = examples()
    assert max(len(e.ids) for e in packed) > TEXT["attention_chunk_size"] and len(packed[2].tiles) > 2
    batch = pack(packed, RowShape(2048, sum(len(e.tiles) for e in packed) + 2))
    features, logits = model.draft_features(batch, Functions(compiled=False), torch.float32)
    assert features.shape == (len(batch.ids_T), 3 * HIDDEN)
    reference = load_reference(folder)
    start = 0
    for example in packed:
        pixels = {}
        if len(example.tiles):
            tiles = (torch.from_numpy(example.tiles).to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5
            pixels = {"pixel_values": tiles.float()}
        with torch.no_grad():
            ids = torch.from_numpy(example.ids).long()[None]
            expected = reference(input_ids=ids, output_hidden_states=True, **pixels)
        place = slice(start, start + len(example.ids))
        start = place.stop
        torch.testing.assert_close(logits[place], expected.logits[0], atol=2e-5, rtol=1e-4)
        tapped = torch.cat([expected.hidden_states[layer][0] for layer in DRAFT_TAPS], dim=-1)
        torch.testing.assert_close(features[place], tapped, atol=2e-5, rtol=1e-4)


def test_checkpoint_is_small_and_divisible(exported: tuple[DemoModel, Path]) -> None:
    _, folder = exported
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40e6
    sizes = ("num_attention_heads", "num_key_value_heads", "num_local_experts", "num_hidden_layers", "vocab_size")
    assert all(TEXT[size] % 8 == 0 for size in sizes)


def test_span_attention_never_looks_across_a_border() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(20, heads, 8) for heads in (4, 2, 2))
    whole = span_attention(q, k, v, torch.tensor([0, 7, 20, 20], dtype=torch.int32), 13)
    for start, end in ((0, 7), (7, 20)):
        alone = span_attention(
            q[start:end], k[start:end], v[start:end], torch.tensor([0, end - start], dtype=torch.int32), 13
        )
        torch.testing.assert_close(whole[start:end], alone)


def test_experts_equal_a_loop_forwards_and_backwards() -> None:
    torch.manual_seed(2)
    x, gate_up, down = torch.randn(50, 16), torch.randn(4, 16, 24), torch.randn(4, 12, 16)
    expert_T = torch.randint(0, 3, (50,))  # the last expert gets nothing
    grad = torch.randn(50, 16)
    results = []
    for looped in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, gate_up, down)]
        if looped:
            rows = [silu_mul(inputs[0][t] @ inputs[1][e]) @ inputs[2][e] for t, e in enumerate(expert_T.tolist())]
            out = torch.stack(rows)
        else:
            place_T, end_E = sorted_places(expert_T, 4)
            assert len(set(place_T.tolist())) == 50
            out = run_experts(inputs[0], place_T, end_E, inputs[1], inputs[2], silu_mul)
        out.backward(grad)
        results.append([out, *(tensor.grad for tensor in inputs)])
    for looped_result, result in zip(*results, strict=True):
        torch.testing.assert_close(result, looped_result, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_fixed_files_are_the_shipped_ones_but_for_the_vocabulary(tmp_path: Path) -> None:
    """The shipped vocabulary belongs to the shipped weights; everything else is derived from architecture.py."""
    write_fixed_files(tmp_path, texts=["The code of the lamp is 4821."])
    for file in tmp_path.iterdir():
        if file.name != "tokenizer.json":
            assert file.read_text() == (CHECKPOINT / file.name).read_text(), file.name
