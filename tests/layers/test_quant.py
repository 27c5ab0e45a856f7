"""What schemes declare, and that what they make of it computes the stored numbers."""

from __future__ import annotations

import pytest
import torch

from remuda.config.model import QuantConfig, WeightFormat
from remuda.config.quant import QuantRule
from remuda.kernels.select import torch_table
from remuda.kernels.table import Weighting
from remuda.layers.base import BuildContext, CannotCut
from remuda.layers.expert_shard import ExpertLayout, ExpertModules, ExpertShard, FusedExperts
from remuda.layers.quant import UNQUANTIZED, scheme_of
from remuda.layers.quant.compressed_tensors import ChannelFp8
from remuda.layers.quant.int4 import Int4
from remuda.layers.quant.online_fp8 import OnlineFp8
from remuda.layers.quant.scheme import LinearShard, Piece, Scheme
from remuda.parallel.topology import Topology
from remuda.weights.parameter import Parameter

TABLE = torch_table()
STACK = LinearShard((Piece("a", (6, 8), (0, 3), (4, 8)), Piece("b", (6, 8), (3, 6), (4, 8))))


def fill(parameters: list[Parameter]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    tensors = [torch.rand(p.shape).add(0.5).to(getattr(torch, p.dtype)) for p in parameters]
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.fill(tensor)
    return [tensor.float() for tensor in tensors]


def experts(layout: ExpertLayout) -> ExpertShard:
    return ExpertShard("x", total=4, hidden=8, inner=6, owned=range(1, 3), columns=(3, 6), layout=layout)


def sources(parameter: Parameter) -> list[str]:
    return [piece.source for piece in parameter.slices]


def test_the_rule_finds_the_scheme_by_the_names_of_modules() -> None:
    rule = QuantRule(QuantConfig(WeightFormat.FP8_CHANNEL, ("re:.*router",)))
    assert isinstance(scheme_of(rule, ["a", "b"]), ChannelFp8)
    assert scheme_of(rule, ["x.router"]) is UNQUANTIZED and scheme_of(QuantRule(None), ["a"]) is UNQUANTIZED


def test_an_unquantized_linear_is_its_pieces_stacked() -> None:
    weights = UNQUANTIZED.linear(STACK, "float32")
    (weight,) = weights.parameters()
    assert (weight.shape, weight.dtype, sources(weight)) == ((6, 4), "float32", ["a.weight", "b.weight"])
    assert [piece.into for piece in weight.slices] == [((0, 3), (0, 4)), ((3, 6), (0, 4))]
    (weight_NK,) = fill([weight])
    x_TK = torch.randn(2, 4)
    assert torch.allclose(weights.make(TABLE, None, gated=False)(x_TK), x_TK @ weight_NK.T)


def test_a_float8_linear_keeps_its_bytes_and_a_scale_per_output() -> None:
    weights = ChannelFp8().linear(STACK, "bfloat16")
    weight, scale = weights.parameters()
    assert (weight.dtype, scale.dtype, scale.shape) == ("float8_e4m3fn", "float32", (6, 1))
    assert sources(scale) == ["a.weight_scale", "b.weight_scale"] and weight.nbytes == 24
    weight_NK, scale_N1 = fill([weight, scale])
    x_TK = torch.randn(2, 4)
    assert torch.allclose(weights.make(TABLE, torch.ones(6), gated=False)(x_TK), x_TK @ (weight_NK * scale_N1).T + 1)


@pytest.mark.parametrize(
    ("scheme", "layout", "first_sources"),
    [
        (UNQUANTIZED, FusedExperts, ["x.gate_up_proj"] * 2),
        (UNQUANTIZED, ExpertModules, [f"x.{e}.{name}_proj.weight" for e in (1, 2) for name in ("gate", "up")]),
        (ChannelFp8(), FusedExperts, [f"x.{e}.{name}_proj.weight" for e in (1, 2) for name in ("gate", "up")]),
    ],
)
def test_experts(scheme: Scheme, layout: ExpertLayout, first_sources: list[str]) -> None:
    weights = scheme.experts(experts(layout), "float32")
    parameters = weights.parameters()
    as_stored = first_sources[0] == "x.gate_up_proj"
    assert [p.shape for p in parameters[:2]] == ([(2, 8, 6), (2, 3, 8)] if as_stored else [(2, 6, 8), (2, 8, 3)])
    assert sources(parameters[0]) == first_sources
    gate_up, down, *scales = fill(parameters)
    if scales:
        gate_up, down = gate_up * scales[0], down * scales[1]
    if not as_stored:
        gate_up, down = gate_up.mT, down.mT
    x_TH, weight_Tk = torch.randn(2, 8), torch.tensor([[0.5], [2.0]])
    made = weights.make(TABLE, Weighting.OUTPUT)(x_TH, torch.tensor([[1], [0]]), weight_Tk)
    for token, expert in enumerate((1, 0)):
        gate, up = (x_TH[token] @ gate_up[expert]).chunk(2)
        want = (torch.nn.functional.silu(gate) * up) @ down[expert] * weight_Tk[token]
        assert torch.allclose(made[token], want, rtol=1e-4)


@pytest.mark.parametrize("layout", [FusedExperts, ExpertModules])
def test_float8_made_while_loading_takes_half_the_memory_and_is_near(layout: ExpertLayout) -> None:
    made, plain = OnlineFp8().experts(experts(layout), "bfloat16"), UNQUANTIZED.experts(experts(layout), "bfloat16")
    assert [sources(p) for p in made.parameters()] == [sources(p) for p in plain.parameters()]
    values, channels = 2 * 8 * 6 + 2 * 3 * 8, 2 * 6 + 2 * 8
    assert sum(p.nbytes for p in made.parameters()) == values + 4 * channels
    fill(made.parameters())
    fill(plain.parameters())
    x_TH, expert_Tk, weight_Tk = torch.randn(4, 8).bfloat16(), torch.tensor([[0], [1], [1], [-1]]), torch.ones(4, 1)
    quantized, exact = (w.make(TABLE, Weighting.INPUT)(x_TH, expert_Tk, weight_Tk).float() for w in (made, plain))
    assert 0 < (quantized - exact).norm() < 0.06 * exact.norm()
    linear = OnlineFp8().linear(STACK, "bfloat16")
    (weight_NK,) = fill(linear.parameters())
    x_TK = torch.randn(2, 4)
    near, want_TN = linear.make(TABLE, None, gated=False)(x_TK), x_TK @ weight_NK.T
    assert 0 < (near - want_TN).norm() < 0.06 * want_TN.norm()


def words(values_NK: torch.Tensor) -> torch.Tensor:
    """-8 ... 7 packed as the format says, value by value."""
    packed = [[sum((v + 8) << 4 * i for i, v in enumerate(row[at : at + 8])) for at in range(0, len(row), 8)]
              for row in values_NK.tolist()]  # fmt: skip
    return torch.tensor(packed).to(torch.int32)


@pytest.mark.parametrize(("group_size", "groups"), [(16, (1, 3)), (0, (0, 1))])
def test_packed_integers_keep_whole_groups_of_a_ranks_inputs(group_size: int, groups: tuple[int, int]) -> None:
    """A rank with inputs 16 to 48 of 64."""
    scheme = Int4(group_size)
    stack = LinearShard((Piece("a", (6, 64), (0, 2), (16, 48)), Piece("b", (6, 64), (4, 6), (16, 48))))
    linear = scheme.linear(stack, "float32")
    packed, scale = linear.parameters()
    assert (packed.shape, packed.dtype, scale.shape) == ((4, 4), "int32", (4, groups[1] - groups[0]))
    assert [(p.source, p.shape, p.region) for p in packed.slices] == [
        ("a.weight_packed", (6, 8), ((0, 2), (2, 6))), ("b.weight_packed", (6, 8), ((4, 6), (2, 6))),
    ]  # fmt: skip
    assert [p.region[1] for p in scale.slices] == [groups] * 2 and scale.slices[0].shape == (
        6,
        64 // (group_size or 64),
    )
    values_NK, scale_NG = torch.randint(-8, 8, (4, 32)), torch.rand(scale.shape) + 0.5
    packed.fill(words(values_NK))
    scale.fill(scale_NG)
    weight_NK = values_NK * scale_NG.repeat_interleave(32 // scale_NG.shape[1], dim=1)
    x_TK = torch.randn(3, 32)
    assert torch.allclose(linear.make(TABLE, None, gated=False)(x_TK), x_TK @ weight_NK.T, rtol=1e-4, atol=1e-4)


def test_a_rank_that_would_get_part_of_a_group_is_refused() -> None:
    context = BuildContext(None, Topology(4, 1, 1, 0, 0, 1, 1), None, "cpu")  # type: ignore[arg-type]
    context.check_cut((16, 48), 16, "o_proj")
    with pytest.raises(CannotCut, match="cuts through a group of 32 inputs of o_proj"):
        context.check_cut((16, 48), 32, "o_proj")


def test_slices_are_made_for_the_loader_only() -> None:
    def refuse() -> tuple[()]:
        raise AssertionError("nobody asked for the slices")

    assert Parameter((3, 4), "bfloat16", refuse).nbytes == 24
