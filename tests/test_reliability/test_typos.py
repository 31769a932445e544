"""Misspelt keys, classes and overrides are named with what they were meant to be, in one line."""

import pytest
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS

from mmconvnextv2.commands.run_tool import explain_fault, run_tool, user_message
from mmconvnextv2.pretrain import FCMAEHead, UnlabelledImages
from mmconvnextv2.utils.suggestions import check_overrides, list_arguments


def said(build):
    """Return what a user sees of an error."""
    with pytest.raises(SystemExit) as stop, DefaultScope.overwrite_default_scope('mmpretrain'):
        run_tool(lambda args: build(), type('Arguments', (), dict(traceback=False)))
    assert '\n' not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    'registry, config, meant',
    [
        (MODELS, dict(type='ConvNeXtV2', arch='atto', drop_path=0.1), "'drop_path', did you mean 'drop_path_rate'"),
        (MODELS, dict(type='FCMAEHead', norm_pixel=True), "'norm_pixel', did you mean 'norm_pix'"),
        (MODELS, dict(type='FCMAEDecoder', channel=4), "'channel', did you mean 'channels'"),
        (TRANSFORMS, dict(type='FCMAEMaskGenerator', maskratio=0.6), "'maskratio', did you mean 'mask_ratio'"),
        (TRANSFORMS, dict(type='LoadMultiChannelImage', channel=3), "'channel', did you mean 'channels'"),
        (DATASETS, dict(type='UnlabelledImages', data_root='x', lazy=True), "'lazy', did you mean 'lazy_init'"),
        (MODELS, dict(type='ConvNextV2'), "'ConvNextV2' is not registered as model, did you mean 'ConvNeXtV2'"),
        (TRANSFORMS, dict(type='FCMAEMaskGenerater'), "did you mean 'FCMAEMaskGenerator'"),
        (OPTIM_WRAPPERS, dict(type='BF16OptimWraper'), "did you mean 'BF16OptimWrapper'"),
    ],
)
def test_unknown_keys_and_types_name_the_nearest(registry, config, meant):
    """A key that a class does not know, or a class that no registry knows, ends as one line with the nearest name."""
    assert meant in said(lambda: registry.build(config))


def test_key_like_no_other_lists_all():
    """A key that is like none lists the arguments, those of base classes too."""
    message = said(lambda: MODELS.build(dict(type='FCMAEHead', zzz=1)))
    assert 'did you mean' not in message and all(name in message for name in list_arguments(FCMAEHead))
    assert {'max_corrupt_share', 'with_label', 'lazy_init'} <= set(list_arguments(UnlabelledImages))


def test_misspelt_override_is_refused():
    """An override whose first name is nearly one of the config is refused; others are taken, new ones too."""
    cfg = Config(dict(train_dataloader=dict(batch_size=2), model=dict()))
    with pytest.raises(ValueError, match="no 'train_dataloder', did you mean 'train_dataloader'"):
        check_overrides(cfg, {'train_dataloder.batch_size': 4})
    check_overrides(cfg, {'train_dataloader.batch_size': 4, 'work_dir': 'x', 'find_unused_parameters': True})
    check_overrides(cfg, None)


def test_other_errors_stay_errors():
    """Errors of the code are not mistaken for a typo or a fault."""
    for error in (
        TypeError("unsupported operand type(s) for +: 'int' and 'str'"),
        KeyError('loss'),
        RuntimeError('shapes cannot be multiplied'),
        AssertionError('x'),
    ):
        assert user_message(error) is None and explain_fault(error) is None
