"""Converting checkpoint files between weight layouts, told step by step and checked against the foreign library.

Names and shapes are the business of ``mmconvnextv2.checkpoint``; here are files, the report of a conversion, and the
comparison of outputs with timm's ``convnextv2_*`` and Hugging Face's ``ConvNextV2Model``.
"""
import os
from typing import Callable, Dict, List

import torch
from torch import Tensor

from .backbone import ConvNeXtV2
from .checkpoint import (DIALECTS, detect_dialect, from_canonical, pretraining_from_canonical, pretraining_to_canonical,
                         read_arch, to_canonical, unwrap)
from .safe_loading import load_file

LAYOUTS = ('canonical', *DIALECTS)
WRAPPERS = {'canonical': 'state_dict', 'official-dense': 'model', 'official-sparse': 'model'}


def convert_file(source: str, target: str, layout: str, force: bool = False, pretraining: bool = False) -> str:
    """Convert a checkpoint of any known layout and write it, whole or not at all.

    Args:
        source (str): Path or URL.
        target (str): The file to write; ``.safetensors`` is written as such, anything else by ``torch.save``.
        layout (str): One of ``LAYOUTS``. ``'timm'`` becomes ``'timm-conv'`` for the sizes whose linears timm holds as
            convolutions.
        force (bool): Overwrite the target. Defaults to False.
        pretraining (bool): Convert a whole FCMAE model with its decoder, between canonical and official-sparse, in
            place of the backbone alone. Defaults to False.

    Returns:
        str: What was kept, renamed, reshaped and dropped.

    Raises:
        ValueError: If the source cannot be read or converted.
        FileExistsError: If the target exists and ``force`` is not set.
    """
    if os.path.exists(target) and not force:
        raise FileExistsError(f'{target} exists: choose another name, or overwrite it with --force')
    found = {key: value for key, value in unwrap(load_file(source)).items() if isinstance(value, Tensor)}
    dialect = detect_dialect(found)
    if pretraining:
        convert = _pretraining_converter(dialect, layout)
    else:
        layout = _timm_variant(to_canonical(found)) if layout == 'timm' else layout

        def convert(weights: dict) -> dict:
            return from_canonical(to_canonical(weights), layout)

    _write_atomically(convert(found), target, layout)
    return '\n'.join([f'{source} ({dialect}) -> {target} ({layout})', *_tell(found, convert)])


def _pretraining_converter(dialect: str, layout: str) -> Callable[[dict], dict]:
    if (dialect, layout) == ('official-sparse', 'canonical'):
        return pretraining_to_canonical
    if (dialect, layout) == ('canonical', 'official-sparse'):
        return pretraining_from_canonical
    raise ValueError(f'--pretraining converts between canonical and official-sparse, not from {dialect} to {layout}')


def _timm_variant(weights: Dict[str, Tensor]) -> str:
    """timm's atto to nano, narrower than 96 channels, hold their linears as 1x1 convolutions."""
    return 'timm-conv' if read_arch(weights)[1][0] < 96 else 'timm'


def _write_atomically(weights: Dict[str, Tensor], target: str, layout: str) -> None:
    partial = f'{target}.partial'
    weights = {name: value.detach().contiguous() for name, value in weights.items()}
    try:
        if target.endswith('.safetensors'):
            from safetensors.torch import save_file
            save_file(weights, partial, metadata=dict(format='pt'))
        else:
            torch.save({WRAPPERS[layout]: weights} if layout in WRAPPERS else weights, partial)
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _tell(found: Dict[str, Tensor], convert: Callable[[dict], dict]) -> List[str]:
    """Follow every weight through a conversion by sending its number in its place."""
    names = list(found)
    numbers = {name: torch.tensor(number).expand(found[name].shape) for number, name in enumerate(names)}
    after = {names[int(value.flatten()[0])]: (name, value.shape) for name, value in convert(numbers).items()}
    lines = {'kept': [], 'renamed': [], 'reshaped': [], 'dropped': [name for name in names if name not in after]}
    for name, (new, shape) in after.items():
        arrow = name if name == new else f'{name} -> {new}'
        if shape != found[name].shape:
            lines['reshaped'].append(f'{arrow}, {tuple(found[name].shape)} to {tuple(shape)}')
        else:
            lines['kept' if name == new else 'renamed'].append(arrow)
    return [f'{len(what)} {kind}' + ''.join(f'\n    {line}' for line in what if kind != 'kept')
            for kind, what in lines.items()]


@torch.no_grad()
def check_conversion(source: str, target: str) -> str:
    """Compare the last feature map of a converted file's own library with ours of the source, on random pictures.

    Returns:
        str: The largest difference, and of which models; for official layouts, which no installed library reads, that
        the file converts back bit for bit.

    Raises:
        ValueError: If they differ by more than 1e-4 of the largest value, or the library is not installed.
    """
    expected, written = to_canonical(unwrap(load_file(source))), unwrap(load_file(target))
    dialect = detect_dialect(written)
    back = to_canonical(written)
    if any(not torch.equal(back[name], value) for name, value in expected.items()) or len(back) != len(expected):
        raise ValueError(f'{target} does not convert back to {source}')
    if dialect.startswith(('official', 'canonical')):
        return f'{target} converts back to the same bits ({len(back)} weights)'
    in_channels = expected['downsample_layers.0.0.weight'].shape[1]
    images = torch.randn(2, in_channels, 64, 96, generator=torch.Generator().manual_seed(0))
    ours, theirs = _our_map(expected, images), _their_map(written, dialect, images)
    difference = (ours - theirs).abs().max().item()
    if difference > 1e-4 * ours.abs().max().item():
        raise ValueError(f'{target}: outputs of {dialect} differ from ConvNeXtV2 by {difference:.2e}')
    return f'{target}: outputs of {dialect} and ConvNeXtV2 differ by at most {difference:.2e}'


def _our_map(weights: Dict[str, Tensor], images: Tensor) -> Tensor:
    depths, channels = read_arch(weights)
    has_grn, scaled = any('.grn.' in name for name in weights), any(name.endswith('.0.gamma') for name in weights)
    model = ConvNeXtV2(dict(depths=depths, channels=channels), images.shape[1], out_indices=(3, ), out_norm=False,
                       response_norm=dict(type='GRN') if has_grn else None, layer_scale_init_value=float(scaled))
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith('norm')})
    return model.eval()(images)[0]


def _their_map(weights: Dict[str, Tensor], dialect: str, images: Tensor) -> Tensor:
    depths, channels = read_arch(to_canonical(weights))
    try:
        return (_timm_map if dialect.startswith('timm') else _hugging_face_map)(weights, depths, channels, images)
    except ImportError as error:
        raise ValueError(f'--check needs the package {error.name!r} for the {dialect} layout: install it') from error


def _timm_map(weights: Dict[str, Tensor], depths: List[int], channels: List[int], images: Tensor) -> Tensor:
    import timm
    model = timm.create_model('convnextv2_atto', depths=depths, dims=channels, in_chans=images.shape[1], num_classes=0,
                              conv_mlp=weights['stages.0.blocks.0.mlp.fc1.weight'].ndim == 4)
    _load_all_but(model, weights, 'head.norm.')
    return model.eval().stages(model.stem(images))


def _hugging_face_map(weights: Dict[str, Tensor], depths: List[int], channels: List[int], images: Tensor) -> Tensor:
    from transformers import ConvNextV2Config, ConvNextV2Model
    model = ConvNextV2Model(ConvNextV2Config(depths=depths, hidden_sizes=channels, num_channels=images.shape[1]))
    _load_all_but(model, weights, 'layernorm.')
    return model.eval()(images).last_hidden_state


def _load_all_but(model: torch.nn.Module, weights: Dict[str, Tensor], optional: str) -> None:
    missing, extra = model.load_state_dict(weights, strict=False)
    lost = [name for name in missing if not name.startswith(optional)] + extra
    if lost:
        raise ValueError(f'{type(model).__name__} and the file disagree on {len(lost)} names: {", ".join(lost[:10])}')
