"""Padding, drop path, squeeze-and-excite, and the structure of the two blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import python_ref
from python_ref import Conv2dSame, ConvStyle, DropPath, FusedMBConv, MBConv, SqueezeExcite
from python_ref.blocks import same_padding


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_is_tensorflows(kernel, stride, dilation):
    for size in range(1, 20):
        outputs = -(-size // stride)
        needed = max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        before, after = same_padding(size, kernel, stride, dilation)
        assert before + after == needed
        assert after - before in (0, 1)


@pytest.mark.parametrize(
    ("size", "pads"),
    [
        ((8, 8), (0, 1, 0, 1)),
        ((9, 9), (1, 1, 1, 1)),
        ((8, 9), (1, 1, 0, 1)),
    ],  # left right top bottom
)
def test_conv2d_same_pads_each_axis_by_its_own_size(size, pads):
    conv = Conv2dSame(3, 5, 3, stride=2).double()
    assert conv.padding == (0, 0) and isinstance(conv, nn.Conv2d)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    want = F.conv2d(F.pad(x, pads), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(conv(x), want)


def test_conv2d_same_exports_with_dynamic_sizes():
    conv = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2))
    height, width = torch.export.Dim("height", min=8), torch.export.Dim("width", min=8)
    exported = torch.export.export(
        conv, (torch.randn(1, 3, 32, 33),), dynamic_shapes=({2: height, 3: width},)
    ).module()
    for size in ((9, 8), (16, 15), (33, 32)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(exported(x), conv(x))


def test_only_strided_convolutions_pad_at_run_time():
    model = python_ref.create("v1_b0", padding="same")
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        assert (type(conv) is Conv2dSame) == (conv.stride == (2, 2))
    assert any(type(m) is Conv2dSame for m in model.modules())
    plain = python_ref.create("v1_b0")
    assert not any(isinstance(m, Conv2dSame) for m in plain.modules())


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.25).train()
    x = torch.ones(4000, 2, 3, 1, dtype=torch.float64)
    y = drop(x)
    per_sample = y.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample[:, 0].tolist()) == {0.0, 1.0 / 0.75}
    # 4000 draws: the standard deviation of the share is 0.007.
    assert abs((per_sample[:, 0] == 0).double().mean() - 0.25) < 0.04
    assert y.dtype == torch.float64 and (x == 1).all()
    assert drop.eval()(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_drop_path_rates(rate):
    with pytest.raises(ValueError, match="drop path"):
        DropPath(rate)


@pytest.mark.parametrize("block_type", [MBConv, FusedMBConv])
@pytest.mark.parametrize("expand", [1, 4])
def test_a_dropped_branch_leaves_the_input(block_type, expand):
    block = block_type(8, 8, expand=expand, se_hidden=2, drop_path=0.5).train()
    assert block.has_skip and isinstance(block.drop_path, DropPath)
    x = torch.randn(64, 8, 5, 5)
    same = (block(x) == x).flatten(1).all(1)
    assert 0 < same.sum() < 64
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_drop_path_rates_rise_linearly_over_skip_blocks_only():
    model = python_ref.create("b0", drop_path=0.2)
    blocks = [block for stage in model.stages for block in stage]
    assert len(blocks) == 21
    for i, block in enumerate(blocks):
        if block.has_skip:
            assert block.drop_path.rate == pytest.approx(0.2 * i / 21)
        else:
            assert isinstance(block.drop_path, nn.Identity)
    # 32 -> 16 in the first block, and the stride or the width changes at each of five more stages.
    assert [b.has_skip for b in blocks].count(False) == 6
    silent = python_ref.create("b0", drop_path=0.0)
    assert not any(isinstance(m, DropPath) for m in silent.modules())


def test_every_block_of_the_first_stage_of_s_has_a_skip():
    stage = python_ref.create("s").stages[0]
    assert all(block.has_skip and block.project is None for block in stage)


def test_squeeze_excite_by_hand():
    se = SqueezeExcite(6, 2).double()
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    hidden = F.silu(F.linear(x.mean((2, 3)), se.reduce.weight.flatten(1), se.reduce.bias))
    gate = torch.sigmoid(F.linear(hidden, se.expand.weight.flatten(1), se.expand.bias))
    torch.testing.assert_close(se(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("stride", [1, 2])
def test_block_children(stride):
    block = MBConv(8, 16, kernel=5, stride=stride, expand=6, se_hidden=2)
    assert [name for name, _ in block.named_children()][:4] == [
        "expand",
        "depthwise",
        "se",
        "project",
    ]
    assert block.depthwise.conv.groups == 48 and block.depthwise.conv.kernel_size == (5, 5)
    assert block.depthwise.conv.stride == (stride, stride) and block.expand.conv.stride == (1, 1)
    assert isinstance(block.project.act, nn.Identity) and not block.has_skip
    assert MBConv(8, 16, expand=1).expand is None
    assert isinstance(MBConv(8, 16).se, nn.Identity)

    fused = FusedMBConv(8, 16, stride=stride, expand=4)
    assert fused.expand.conv.stride == (stride, stride) and fused.expand.conv.groups == 1
    assert isinstance(fused.se, nn.Identity) and isinstance(fused.project.act, nn.Identity)
    single = FusedMBConv(8, 16, expand=1)
    assert single.project is None and isinstance(single.expand.act, nn.SiLU)


def test_blocks_leave_their_input_alone():
    for block in (MBConv(8, 8, expand=1), MBConv(8, 8), FusedMBConv(8, 8, expand=1)):
        x = torch.randn(2, 8, 5, 5)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


def test_unknown_padding():
    with pytest.raises(ValueError, match="padding"):
        ConvStyle(padding="valid")
