"""Layouts of ConvNeXt V2 weights, and the loader of pretrained backbones.

Every key below is the name of one ConvNeXt V2 weight in a foreign file; canonical names are mmpretrain's. The official
loader prints mismatches and goes on; here whatever is missing, left over or of a wrong shape raises.
Layouts: the official repository's dense and sparse files, timm's ``convnextv2_*`` and Hugging Face's ``ConvNextV2``.
"""
import re
from statistics import mode
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn

from .safe_loading import load_file

LICENCE = 'The official ConvNeXt V2 weights are licensed CC BY-NC 4.0: no commercial use.'


def _flat(tensor: Tensor) -> Tensor:
    """(1, ..., C) to (C, )."""
    return tensor.reshape(-1)


def _row(tensor: Tensor) -> Tensor:
    """(C, ) to (1, C)."""
    return tensor.reshape(1, -1)


def _four(tensor: Tensor) -> Tensor:
    """(C, ) to (1, 1, 1, C)."""
    return tensor.reshape(1, 1, 1, -1)


def _depthwise_from_sparse(kernel: Tensor) -> Tensor:
    """(49, C) to (C, 1, 7, 7); the first axis counts kw * 7 + kh."""
    return kernel.reshape(7, 7, -1).permute(2, 1, 0).unsqueeze(1).contiguous()


def _depthwise_to_sparse(weight: Tensor) -> Tensor:
    return weight.squeeze(1).permute(2, 1, 0).reshape(49, -1).contiguous()


def _downsample_from_sparse(kernel: Tensor) -> Tensor:
    """(4, Cin, Cout) to (Cout, Cin, 2, 2); the first axis counts kw * 2 + kh."""
    return kernel.reshape(2, 2, *kernel.shape[1:]).permute(3, 2, 1, 0).contiguous()


def _downsample_to_sparse(weight: Tensor) -> Tensor:
    return weight.permute(3, 2, 1, 0).reshape(4, *weight.shape[1::-1]).contiguous()


def _linear(weight: Tensor) -> Tensor:
    """(Cout, Cin) or a 1x1 convolution's (Cout, Cin, 1, 1) to (Cout, Cin)."""
    return weight.flatten(1)


def _conv1x1(weight: Tensor) -> Tensor:
    """(Cout, Cin) to (Cout, Cin, 1, 1)."""
    return weight[..., None, None]


def _one_site(tensor: Tensor) -> Tensor:
    """(C, ) to (1, C, 1, 1)."""
    return tensor.reshape(1, -1, 1, 1)


class Rule(NamedTuple):
    """One line of a layout's table. ``{s}`` stands for a stage, ``{b}`` for a block."""
    foreign: str
    canonical: Optional[str]  # None: dropped on purpose
    read: Optional[Callable[[Tensor], Tensor]] = None
    write: Optional[Callable[[Tensor], Tensor]] = None


def _pairs(foreign: str, canonical: str, leaves: str = 'weight bias') -> List[Rule]:
    return [Rule(f'{foreign}.{leaf}', f'{canonical}.{leaf}') for leaf in leaves.split()]


def _block(stage: str, names: Tuple[str, str, str, str]) -> List[Rule]:
    """Return the rules of a dense block whose layers have other names."""
    ours = ('depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2')
    return [rule for one, other in zip(names, ours) for rule in _pairs(f'{stage}.{one}', f'stages.{{s}}.{{b}}.{other}')]


_GRN = 'stages.{s}.{b}.grn.'
_DENSE_STEM = [*_pairs('downsample_layers.0.0', 'downsample_layers.0.0'),
               *_pairs('downsample_layers.0.1', 'downsample_layers.0.1')]

DIALECTS: Dict[str, List[Rule]] = {
    'official-dense': [
        *_DENSE_STEM,
        *_pairs('downsample_layers.{d}.0', 'downsample_layers.{d}.0'),
        *_pairs('downsample_layers.{d}.1', 'downsample_layers.{d}.1'),
        *_block('stages.{s}.{b}', ('dwconv', 'norm', 'pwconv1', 'pwconv2')),
        Rule('stages.{s}.{b}.grn.gamma', _GRN + 'gamma', _flat, _four),
        Rule('stages.{s}.{b}.grn.beta', _GRN + 'beta', _flat, _four),
        Rule('stages.{s}.{b}.gamma', 'stages.{s}.{b}.gamma'),
        *_pairs('norm', 'norm3'),
        Rule('head.weight', None), Rule('head.bias', None),
    ],
    'official-sparse': [
        *[rule._replace(foreign='encoder.' + rule.foreign) for rule in _DENSE_STEM],
        *_pairs('encoder.downsample_layers.{d}.0.ln', 'downsample_layers.{d}.0'),
        Rule('encoder.downsample_layers.{d}.1.kernel', 'downsample_layers.{d}.1.weight', _downsample_from_sparse,
             _downsample_to_sparse),
        Rule('encoder.downsample_layers.{d}.1.bias', 'downsample_layers.{d}.1.bias', _flat, _row),
        Rule('encoder.stages.{s}.{b}.dwconv.kernel', 'stages.{s}.{b}.depthwise_conv.weight', _depthwise_from_sparse,
             _depthwise_to_sparse),
        Rule('encoder.stages.{s}.{b}.dwconv.bias', 'stages.{s}.{b}.depthwise_conv.bias', _flat, _row),
        *_pairs('encoder.stages.{s}.{b}.norm.ln', 'stages.{s}.{b}.norm'),
        *_pairs('encoder.stages.{s}.{b}.pwconv1.linear', 'stages.{s}.{b}.pointwise_conv1'),
        *_pairs('encoder.stages.{s}.{b}.pwconv2.linear', 'stages.{s}.{b}.pointwise_conv2'),
        Rule('encoder.stages.{s}.{b}.grn.gamma', _GRN + 'gamma', _flat, _row),
        Rule('encoder.stages.{s}.{b}.grn.beta', _GRN + 'beta', _flat, _row),
        Rule('mask_token', None), Rule('proj.{any}', None), Rule('decoder.{any}', None), Rule('pred.{any}', None),
    ],
    'timm': [
        *_pairs('stem.0', 'downsample_layers.0.0'), *_pairs('stem.1', 'downsample_layers.0.1'),
        *_pairs('stages.{d}.downsample.0', 'downsample_layers.{d}.0'),
        *_pairs('stages.{d}.downsample.1', 'downsample_layers.{d}.1'),
        *_block('stages.{s}.blocks.{b}', ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2')),
        Rule('stages.{s}.blocks.{b}.mlp.grn.weight', _GRN + 'gamma'),
        Rule('stages.{s}.blocks.{b}.mlp.grn.bias', _GRN + 'beta'),
        Rule('stages.{s}.blocks.{b}.gamma', 'stages.{s}.{b}.gamma'),
        *_pairs('head.norm', 'norm3'),
        Rule('head.fc.weight', None), Rule('head.fc.bias', None),
    ],
    'huggingface': [
        *_pairs('embeddings.patch_embeddings', 'downsample_layers.0.0'),
        *_pairs('embeddings.layernorm', 'downsample_layers.0.1'),
        *_pairs('encoder.stages.{d}.downsampling_layer.0', 'downsample_layers.{d}.0'),
        *_pairs('encoder.stages.{d}.downsampling_layer.1', 'downsample_layers.{d}.1'),
        *_block('encoder.stages.{s}.layers.{b}', ('dwconv', 'layernorm', 'pwconv1', 'pwconv2')),
        Rule('encoder.stages.{s}.layers.{b}.grn.weight', _GRN + 'gamma', _flat, _four),
        Rule('encoder.stages.{s}.layers.{b}.grn.bias', _GRN + 'beta', _flat, _four),
        *_pairs('layernorm', 'norm3'),
        Rule('classifier.weight', None), Rule('classifier.bias', None), Rule('hidden_states_norms.{any}', None),
    ],
}
# timm's atto, femto, pico and nano hold the two linears as 1x1 convolutions
DIALECTS['timm-conv'] = [
    rule._replace(read=_linear, write=_conv1x1) if rule.foreign.endswith(('fc1.weight', 'fc2.weight')) else rule
    for rule in DIALECTS['timm']
]
# The whole model of the official pretraining script: its sparse encoder, and a dense decoder
PRETRAINING: List[Rule] = [
    *[rule._replace(canonical='backbone.' + rule.canonical) for rule in DIALECTS['official-sparse'] if rule.canonical],
    Rule('mask_token', 'neck.mask_token', _flat, _one_site),
    *_pairs('proj', 'neck.proj'),
    *[rule._replace(canonical=rule.canonical.replace('stages.{s}.{b}', 'neck.blocks.{b}'))
      for rule in _block('decoder.{b}', ('dwconv', 'norm', 'pwconv1', 'pwconv2'))],
    Rule('decoder.{b}.grn.gamma', 'neck.blocks.{b}.grn.gamma', _flat, _four),
    Rule('decoder.{b}.grn.beta', 'neck.blocks.{b}.grn.beta', _flat, _four),
    Rule('pred.weight', 'head.pred.weight', _linear, _conv1x1), Rule('pred.bias', 'head.pred.bias'),
]
SIGNATURES = {  # a piece of a key that one layout alone has
    'canonical': '.depthwise_conv.', 'official-sparse': '.dwconv.kernel', 'timm': '.conv_dw.',
    'huggingface': 'embeddings.patch_embeddings', 'official-dense': '.dwconv.weight',
}
WRAPPERS = re.compile(r'^(module\.|_orig_mod\.)+')  # DistributedDataParallel, moving averages, torch.compile
SPELLINGS = [  # the same layout under another prefix: Hugging Face's model inside a classifier, timm's features_only
    (re.compile(r'^convnextv2\.'), ''), (re.compile(r'^(stem|stages)_(\d)\.'), r'\1.\2.'),
]
CANONICAL_KEY = re.compile(r'(downsample_layers|stages)\.\d+\.|norm[0-3]\.')


def unwrap(content: dict) -> dict:
    """Return the state dict inside a checkpoint file's content."""
    for wrapper in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(content.get(wrapper), dict):
            return content[wrapper]
    return content


def detect_dialect(state_dict: dict) -> str:
    """Tell the layout of a state dict.

    Returns:
        str: ``'canonical'`` or a key of ``DIALECTS``.

    Raises:
        ValueError: If the keys are of no known layout.
    """
    for dialect, piece in SIGNATURES.items():
        if any(piece in key for key in state_dict):
            convolves = any(key.endswith('mlp.fc1.weight') and value.ndim == 4 for key, value in state_dict.items())
            return 'timm-conv' if dialect == 'timm' and convolves else dialect
    raise ValueError(f'these weights are of no known ConvNeXt V2 layout ({", ".join(SIGNATURES)}): the file holds '
                     f'{_some(list(state_dict))}')


def to_canonical(state_dict: dict) -> Dict[str, Tensor]:
    """Return a backbone's weights under canonical names, without prefix.

    Args:
        state_dict (dict): Weights in any known layout; canonical ones may stand in a whole model, as ``backbone.*``.

    Returns:
        dict[str, Tensor]: Backbone weights; heads and decoders are dropped.

    Raises:
        ValueError: If the layout is unknown, a key is of no line of its table, or a weight of the backbone (depths and
            channels are read off the file) is missing or has a wrong shape.
    """
    dialect = detect_dialect(state_dict)
    state_dict = {WRAPPERS.sub('', key): value for key, value in state_dict.items()}
    if dialect == 'canonical':
        converted = _canonical_backbone(state_dict)
    else:
        converted = _read(state_dict, DIALECTS[dialect], dialect)
    problems = _list_problems(converted, _expected_shapes(converted))
    if problems:
        raise ValueError(f'these weights ({dialect} layout) are no whole ConvNeXt backbone: {problems}')
    return converted


def pretraining_to_canonical(state_dict: dict) -> Dict[str, Tensor]:
    """Return the weights of the official pretraining model as those of our ``FCMAE``, decoder included.

    Any dict of tensors with those names and shapes will do, such as AdamW's moments by parameter name: the reshapes are
    permutations.

    Raises:
        ValueError: If a key is of no line of the table, or the encoder is not whole.
    """
    converted = _read({WRAPPERS.sub('', key): value for key, value in state_dict.items()}, PRETRAINING, 'pretraining')
    to_canonical(converted)
    return converted


def pretraining_from_canonical(state_dict: dict) -> Dict[str, Tensor]:
    """Return the weights of our ``FCMAE`` as the official pretraining script saves them; the inverse of
    :func:`pretraining_to_canonical`."""
    weights = {key: value for key, value in state_dict.items() if not key.startswith('data_preprocessor.')}
    return _write(weights, PRETRAINING, 'pretraining')


def _read(state_dict: dict, rules: List[Rule], layout: str) -> Dict[str, Tensor]:
    """Rename and reshape through the table of a foreign layout."""
    patterns = [(_pattern(rule.foreign), rule) for rule in rules]
    converted, left_over = {}, []
    for key, value in state_dict.items():
        match, rule = _first_match(patterns, _respell(key))
        if match is None:
            left_over.append(key)
        elif rule.canonical is not None:
            converted[rule.canonical.format(**match.groupdict())] = rule.read(value) if rule.read else value
    if left_over:
        raise ValueError(f'{len(left_over)} keys are not of the {layout} layout: {_some(left_over)}')
    return converted


def _write(state_dict: dict, rules: List[Rule], layout: str) -> Dict[str, Tensor]:
    """The inverse of :func:`_read`, without the keys that it drops."""
    patterns = [(_pattern(rule.canonical), rule) for rule in rules if rule.canonical]
    converted, left_over = {}, []
    for key, value in state_dict.items():
        match, rule = _first_match(patterns, key)
        if match is None:
            left_over.append(key)
        else:
            converted[rule.foreign.format(**match.groupdict())] = rule.write(value) if rule.write else value
    if left_over:
        raise ValueError(f'the {layout} layout has no place for {len(left_over)} keys: {_some(left_over)}')
    return converted


def _first_match(patterns: List[Tuple['re.Pattern', Rule]], key: str) -> Tuple[Optional['re.Match'], Optional[Rule]]:
    found = ((pattern.fullmatch(key), rule) for pattern, rule in patterns)
    return next(((match, rule) for match, rule in found if match), (None, None))


def _respell(key: str) -> str:
    for pattern, replacement in SPELLINGS:
        key = pattern.sub(replacement, key)
    return key


def read_arch(weights: Dict[str, Tensor]) -> Tuple[List[int], List[int]]:
    """Read the four depths and the four widths off canonical weights."""
    blocks = [re.fullmatch(r'stages\.(\d)\.(\d+)\..*', key) for key in weights]
    depths = [max([int(match[2]) + 1 for match in blocks if match and int(match[1]) == stage] or [1])
              for stage in range(4)]
    widths = [[len(value) for key, value in weights.items() if re.fullmatch(rf'stages\.{stage}\..*\.norm\.\w+', key)]
              for stage in range(4)]
    channels = [mode(found) if found else 0 for found in widths]  # the most frequent, so that one odd weight is named
    return depths, channels


def _expected_shapes(weights: Dict[str, Tensor]) -> Dict[str, Tuple[int, ...]]:
    """Return the shape of every weight of the backbone that ``weights`` seem to be, by depths and channels read off
    them; output norms are expected only where they are."""
    depths, channels = read_arch(weights)
    stem = weights.get('downsample_layers.0.0.weight')
    shapes = {'downsample_layers.0.0.weight': (channels[0], stem.shape[1] if stem is not None and stem.ndim > 1 else 3,
                                               4, 4),
              'downsample_layers.0.0.bias': (channels[0], )}
    shapes.update(_norm_shapes('downsample_layers.0.1', channels[0]))
    for stage in range(1, 4):
        name = f'downsample_layers.{stage}'
        shapes.update(_norm_shapes(f'{name}.0', channels[stage - 1]))
        shapes.update({f'{name}.1.weight': (channels[stage], channels[stage - 1], 2, 2),
                       f'{name}.1.bias': (channels[stage], )})
    has_grn = any('.grn.' in key for key in weights)
    for stage, (depth, width) in enumerate(zip(depths, channels)):
        for block in range(depth):
            shapes.update(_block_shapes(f'stages.{stage}.{block}', width, has_grn))
        shapes.update({key: shape for key, shape in _norm_shapes(f'norm{stage}', width).items() if key in weights})
    scales = [key for key in weights if re.fullmatch(r'stages\.\d\.\d+\.gamma', key)]
    return {**shapes, **{key: (channels[int(key.split('.')[1])], ) for key in scales}}


def _norm_shapes(name: str, channels: int) -> Dict[str, Tuple[int, ...]]:
    return {f'{name}.weight': (channels, ), f'{name}.bias': (channels, )}


def _block_shapes(name: str, channels: int, has_grn: bool) -> Dict[str, Tuple[int, ...]]:
    grn = {f'{name}.grn.gamma': (4 * channels, ), f'{name}.grn.beta': (4 * channels, )} if has_grn else {}
    return {
        f'{name}.depthwise_conv.weight': (channels, 1, 7, 7), f'{name}.depthwise_conv.bias': (channels, ),
        **_norm_shapes(f'{name}.norm', channels), **grn,
        f'{name}.pointwise_conv1.weight': (4 * channels, channels), f'{name}.pointwise_conv1.bias': (4 * channels, ),
        f'{name}.pointwise_conv2.weight': (channels, 4 * channels), f'{name}.pointwise_conv2.bias': (channels, ),
    }


def _list_problems(weights: Dict[str, Tensor], shapes: Dict[str, Tuple[int, ...]]) -> str:
    """Say which weights are missing, too many or of a wrong shape; '' when none is."""
    missing = [key for key in shapes if key not in weights]
    extra = [key for key in weights if key not in shapes]
    wrong = [f'{key} {tuple(weights[key].shape)} instead of {tuple(shape)}'
             for key, shape in shapes.items() if key in weights and weights[key].shape != tuple(shape)]
    kinds = (('missing in the file', missing), ('not in the model', extra), ('of a wrong shape', wrong))
    return '; '.join(f'{len(keys)} {kind}: {_some(keys)}' for kind, keys in kinds if keys)


def from_canonical(state_dict: dict, dialect: str) -> Dict[str, Tensor]:
    """Return canonical backbone weights under another layout's names; the inverse of :func:`to_canonical`.

    Raises:
        ValueError: If the layout is unknown, or has no place for a key (``norm0`` to ``norm2`` of a detector).
    """
    if dialect == 'canonical':
        return dict(state_dict)
    if dialect not in DIALECTS:
        raise ValueError(f"dialect={dialect!r} is unknown: choose from {['canonical', *DIALECTS]}")
    return _write(state_dict, DIALECTS[dialect], dialect)


def load_backbone(model: nn.Module, path: str) -> None:
    """Load a backbone from a file of any layout; strict, nothing is loaded unless everything fits.

    Args:
        model (nn.Module): A ``ConvNeXtV2``.
        path (str): Local path, ``http(s)://`` or another of mmengine's file backends.

    Raises:
        ValueError: If a weight other than an output norm is missing, left over or of a wrong shape. The stem alone
            adapts to another number of input channels.
    """
    state_dict = unwrap(load_file(path))
    dialect = detect_dialect(state_dict)
    loaded, wanted = to_canonical(state_dict), model.state_dict()
    note = _adapt_stem(loaded, wanted)
    dropped = [key for key in loaded if key not in wanted and key.startswith('norm')]
    problems = _list_problems(
        {key: value for key, value in loaded.items() if key not in dropped},
        {key: value.shape for key, value in wanted.items() if key in loaded or not key.startswith('norm')})
    if problems:
        raise ValueError(f'{path} ({dialect} layout) does not fit {type(model).__name__}: {problems}. Check arch and '
                         'response_norm.')
    fresh = [key for key in wanted if key not in loaded]
    model.load_state_dict({key: loaded[key] for key in wanted if key in loaded}, strict=False)
    licence = LICENCE if dialect.startswith('official') else ''
    print_log(f'{path}: {dialect} layout, {len(wanted) - len(fresh)} loaded, newly initialised {fresh or "none"}, '
              f'dropped {dropped or "none"} and {len(state_dict) - len(loaded)} of heads or decoders. {note}{licence}',
              logger='current')


@WEIGHT_INITIALIZERS.register_module()
class ConvNeXtV2Pretrained:
    """Initializer that loads a backbone: ``init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=PATH_OR_URL)``.

    Args:
        checkpoint (str): See :func:`load_backbone`.
    """

    def __init__(self, checkpoint: str) -> None:
        if not checkpoint:
            raise ValueError(f'checkpoint={checkpoint!r} of ConvNeXtV2Pretrained: give a path or a URL, or set '
                             'init_cfg=None to start from drawn weights')
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        load_backbone(module, self.checkpoint)
        init_info = f'{type(self).__name__}: {self.checkpoint}'
        for record in getattr(module, '_params_init_info', {}).values():
            record['init_info'] = init_info


PRETRAINED = ('ConvNeXtV2Pretrained', ConvNeXtV2Pretrained, 'Pretrained', PretrainedInit)


def skip_initial_weights_on_resume(runner: Runner) -> bool:
    """Keep a run that resumes from downloading or reading the weights that it once started from.

    mmengine initialises the model before it resumes. Call this between building the runner and ``runner.train()``; it
    takes the pretrained initializers off the model's modules when there is a checkpoint to resume from.

    Returns:
        bool: Whether the run resumes.
    """
    cfg = runner.cfg
    resumes = cfg.get('resume') and (cfg.get('load_from') or find_latest_checkpoint(runner.work_dir))
    if not resumes or not isinstance(runner.model, nn.Module):
        return bool(resumes)
    for module in runner.model.modules():
        given = getattr(module, 'init_cfg', None)
        if given:
            given = [given] if isinstance(given, dict) else given
            module.init_cfg = [cfg for cfg in given if cfg['type'] not in PRETRAINED]
    print_log('resuming: initial weights are not loaded', logger='current')
    return True


def _adapt_stem(loaded: dict, wanted: dict) -> str:
    """Repeat and rescale the stem's kernel in ``loaded`` for another number of input channels; say so."""
    name = 'downsample_layers.0.0.weight'
    if name not in loaded or loaded[name].shape[1] == wanted[name].shape[1]:
        return ''
    kernel, channels = loaded[name], wanted[name].shape[1]
    index = torch.arange(channels) % kernel.shape[1]
    loaded[name] = kernel[:, index] * (kernel.shape[1] / channels)
    return f'The stem was repeated from {kernel.shape[1]} to {channels} input channels and rescaled. '


def _canonical_backbone(state_dict: dict) -> Dict[str, Tensor]:
    """Take the backbone out of a canonical model's weights."""
    if any(key.startswith('backbone.') for key in state_dict):
        return {key[len('backbone.'):]: value for key, value in state_dict.items() if key.startswith('backbone.')}
    left_over = [key for key in state_dict if not CANONICAL_KEY.match(key)]
    if left_over:
        raise ValueError(f'{len(left_over)} keys are not of the canonical layout: {_some(left_over)}')
    return dict(state_dict)


def _pattern(template: str) -> 're.Pattern':
    """Turn a table's key into a pattern with the groups s (stage), b (block), d (downsampling, 1 to 3)."""
    pattern = re.escape(template)
    for name, digits in (('s', '[0-3]'), ('b', r'\d+'), ('d', '[1-3]'), ('any', '.+')):
        pattern = pattern.replace(re.escape('{' + name + '}'), f'(?P<{name}>{digits})')
    return re.compile(pattern)


def _some(keys: List[str]) -> str:
    return ', '.join(keys[:10]) + (', ...' if len(keys) > 10 else '')
