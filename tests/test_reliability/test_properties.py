"""Properties of masking, conversion and the executions that hold for every sampled case."""

import numpy as np
import pytest
import torch
from small_models import settings_of

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import LAYOUTS, detect_layout, from_canonical, to_canonical
from mmconvnextv2.pretrain import FCMAEMaskGenerator
from mmconvnextv2.pretrain.masking import masked_cells_of, num_visible

pytest.importorskip('hypothesis')
from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

archs = st.builds(
    lambda depths, width: dict(depths=depths, channels=tuple(width + step for step in range(4))),
    st.tuples(*[st.integers(1, 2)] * 4),
    st.integers(2, 5),
)


def random_backbone(arch, seed, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    model = ConvNeXtV2(arch, **kwargs).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return model


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-6, 1 - 1e-6), st.integers(0, 2**31))
def test_masks_hide_their_share(rows, columns, ratio, seed):
    """For any size and ratio the mask is refused, or shows floor(cells * (1 - ratio)) different cells in ascending
    order; with the masked ones they are all cells, once."""
    results, cells = dict(img=np.zeros((32 * rows, 32 * columns, 1), np.uint8)), rows * columns
    expected = int(np.floor(cells * (1 - ratio) + 1e-9))
    np.random.seed(seed)
    if not 0 < expected < cells:
        with pytest.raises(ValueError, match='mask_ratio'):
            FCMAEMaskGenerator(ratio).transform(results)
        return
    visible = FCMAEMaskGenerator(ratio).transform(results)['visible_cells']
    assert len(visible) == expected == num_visible(cells, ratio) and (np.diff(visible) > 0).all()
    masked = masked_cells_of(torch.from_numpy(visible)[None], cells)[0].tolist()
    assert masked == sorted(set(range(cells)) - set(visible.tolist()))


@settings(max_examples=25, deadline=None)
@given(archs, st.sampled_from(sorted(LAYOUTS)), st.integers(0, 99))
def test_conversion_there_and_back_is_the_same(arch, layout, seed):
    """Any backbone's weights, written in any layout, are recognised as that layout and come back bit for bit."""
    weights = random_backbone(arch, seed, out_indices=(3,), out_norm=False, **settings_of(layout)).state_dict()
    written = from_canonical(weights, layout)
    # These differ from others in norms alone
    expected = {'huggingface-backbone': 'huggingface', 'dinov3': 'official-dense'}.get(layout, layout)
    assert detect_layout(written) == expected
    returned = to_canonical(written)
    assert returned.keys() == weights.keys()
    assert all(torch.equal(returned[name], value) for name, value in weights.items())


@settings(max_examples=15, deadline=None)
@given(archs, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.data())
def test_executions_agree(arch, rows, columns, batch, data):
    """For any arch, size and mask the packed and the masked forward agree, do not read masked pixels, NaN included, and
    treat each image of a batch as if it were alone."""
    cells = rows * columns
    assume(cells > 1)
    count, seed = data.draw(st.integers(1, cells)), data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    visible = torch.stack([torch.randperm(cells, generator=generator)[:count].sort()[0] for _ in range(batch)])
    images = torch.randn(batch, 3, 32 * rows, 32 * columns, generator=generator, dtype=torch.float64)
    model = random_backbone(arch, seed)
    shown = torch.zeros(batch, cells, dtype=torch.bool).scatter(1, visible, True).view(batch, 1, rows, columns)
    spoilt = torch.where(shown.repeat_interleave(32, 2).repeat_interleave(32, 3), images, torch.nan)
    with torch.no_grad():
        packed, masked = (model(images, visible, name) for name in ('packed', 'masked'))
        blind = model(spoilt, visible, 'packed')
        alone = [model(images[one : one + 1], visible[one : one + 1], 'packed') for one in range(batch)]
    for stage, (one, other, third) in enumerate(zip(packed, masked, blind)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one, third, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one, torch.cat([single[stage] for single in alone]), rtol=1e-9, atol=1e-9)
