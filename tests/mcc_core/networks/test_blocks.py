"""One pass for views of all kinds, attention without padding, and compilation change no value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from last_step import LastStep
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from mcc_core.methods.mcc.masking import sample_masks
from mcc_core.networks import blocks, encoder
from mcc_core.networks.encoder import Encoder

CPU = torch.device("cpu")


def build(aux_block: int = 2) -> Encoder:
    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_patch16_224", num_classes=0, depth=3, img_size=64, embed_dim=24, num_heads=3)
    return Encoder(vit, aux_block).double()


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, others, local = torch.randn(3, 2, 3, 64, 48, dtype=torch.float64, generator=generator)
    masks = sample_masks(2, 3, (4, 3), 0.5, 1, generator)
    masks[0, 0] = 1  # nothing but the class token is left
    return images, others, local, masks


def compared(ours: Any, found: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors, and every gradient of a function of them all."""
    generator = torch.Generator().manual_seed(5)
    parts = [(x * torch.randn(x.shape, dtype=x.dtype, generator=generator)).sum() for x in found]
    return [*found, *torch.autograd.grad(torch.stack(parts).sum(), list(ours.parameters()), allow_unused=True)]


def parted(net: Encoder, images: Tensor, others: Tensor | None, local: Tensor, masks: Tensor) -> list[Tensor]:
    features, cls = net.features_and_cls(images, others)
    more = () if cls is None else (cls,)
    return compared(net, (features.cls, features.patches, features.aux, *more, net.masked_cls(local, masks)))


def together(net: Encoder, images: Tensor, others: Tensor | None, local: Tensor, masks: Tensor) -> list[Tensor]:
    features, cls, keys = net.features_and_views(images, others, local, masks)
    more = () if cls is None else (cls,)
    return compared(net, (features.cls, features.patches, features.aux, *more, keys))


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("aux_block", [2, 3])
@pytest.mark.parametrize("lean", ["nothing", "elementwise", "blocks"])
def test_global_and_local_views_in_one_pass(aux_block: int, lean: Any) -> None:
    net, (images, others, local, masks) = build(aux_block), inputs()
    net.recompute = lean
    same(together(net, images, others, local, masks), parted(net, images, others, local, masks))
    same(together(net, images, None, local, masks), parted(net, images, None, local, masks))


def test_a_step_in_one_pass_has_the_losses_and_gradients_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for piecewise in ({"cpu"}, set[str]()):
        monkeypatch.setattr(encoder, "PIECEWISE", piecewise)
        torch.manual_seed(0)
        case = LastStep("tiny", CPU, images=2)
        case.objective.double()
        case.batch = {k: v.double() if v.is_floating_point() and v.ndim == 4 else v for k, v in case.batch.items()}
        passes: list[int] = []
        monkeypatch.setattr(encoder.Encoder, "masked_cls", _noting(Encoder.masked_cls, passes))
        step = case.run()
        assert bool(passes) == bool(piecewise) and (step.output.local_cls is None) == bool(piecewise)  # type: ignore[attr-defined]
        found.append([*step.terms.values(), *(p.grad for p in case.parameters() if p.grad is not None)])
        monkeypatch.undo()
    assert len(found[0]) > 50
    same(found[1], found[0])


def _noting(function: Any, passes: list[int]) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        passes.append(1)
        return function(*arguments, **named)

    return call


def reference(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, most_q: int, most_k: int) -> Tensor:
    """`varlen_attn` sequence by sequence, of T,heads,d each."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and most_q >= cu_q.diff().max() and most_k >= cu_k.diff().max()
    assert cu_q[-1] == len(q) and cu_k[-1] == len(k) == len(v)
    seen = []
    for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
        one, keys, values = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        seen.append(F.scaled_dot_product_attention(one, keys, values).transpose(0, 1))
    return torch.cat(seen)


def test_attention_without_padding_is_that_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (images, others, local, masks) = build(), inputs()
    padded = parted(net, images, others, local, masks)
    calls: list[int] = []
    monkeypatch.setattr(blocks, "varlen_attn", _noting(reference, calls))
    monkeypatch.setattr(encoder, "unpadded_attention", lambda *unused: True)
    same(parted(net, images, others, local, masks), padded)
    assert len(calls) == 3  # one a block
    same(together(net, images, others, local, masks), padded)
    assert len(calls) == 6


def test_attention_without_padding_takes_what_it_is_given() -> None:
    if blocks.varlen_attn is None:
        pytest.skip("this PyTorch pads")
    attn, there = build().vit.blocks[0].attn, "cuda"
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes and types as on a GPU
        ends = torch.tensor([0, 5, 6, 9], dtype=torch.int32, device=there)
        first, slots = ends[:-1].long(), torch.zeros(9, dtype=torch.long, device=there)
        joined = torch.empty(9, 3 * 24, dtype=torch.bfloat16, device=there, requires_grad=True)
        layout = blocks.Packed(3, 5, first, slots, ends=ends)
        seen = layout.attended(attn, joined)
        assert (seen.shape, seen.dtype, seen.device.type) == ((9, 24), torch.bfloat16, there)
        few = blocks.Packed(3, 5, first, slots, ends=ends, class_only=True)
        assert few.attended(attn, joined).shape == (3, 24)
        assert seen.requires_grad


def test_where_attention_pads() -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert not blocks.unpadded_attention(CPU, half, 64)
    assert not blocks.unpadded_attention(cuda, torch.float32, 64)  # flash attention is of half precision
    assert not blocks.unpadded_attention(cuda, half, 60)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("piecewise", [True, False])
def test_steps_of_changing_shapes_hit_no_limit_of_recompilation(
    piecewise: bool, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    monkeypatch.setattr(encoder, "PIECEWISE", {"cpu"} if piecewise else set())
    made: list[int] = []
    torch.manual_seed(0)
    plain = LastStep("tiny", CPU)
    torch.manual_seed(0)
    case: Any = LastStep("tiny", CPU)
    net = case.objective.model.encoder
    net._block = blocks.BlockRunner()
    # The plans are made as for any backend, and computed as PyTorch does without one.
    net._block.before = torch.compile(blocks._before, dynamic=True, backend="aot_eager")
    net._block.after = torch.compile(blocks._after, dynamic=True, backend="aot_eager")
    for number in range(7):
        for one in (plain, case):
            generator = torch.Generator().manual_seed(number)
            images, views, *grid = one.draws["masks"].shape
            masks = sample_masks(images, views, (grid[0], grid[1]), 0.1 + 0.1 * number, 1, generator)
            one.draws = {**one.draws, "masks": masks}
        torch.testing.assert_close(case.run().total, plain.run().total, rtol=1e-5, atol=1e-6)
        made.append(counters["stats"]["unique_graphs"])
    assert not counters["frames"].get("skipped", 0) and "recompile_limit" not in str(dict(counters["unimplemented"]))
    assert made[-1] == made[1] <= 8  # all that is compiled is compiled in the first two steps
