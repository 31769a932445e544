"""Find the state dict in a checkpoint file: its key, its prefix, and the moving average or the trained weights.

mmengine's ``EMAHook`` writes the average to ``state_dict`` and the trained weights to ``ema_state_dict``. timm and the
official code write the two under separate keys.
"""

from ..utils.errors import UserError

WEIGHTS = ('default', 'raw', 'ema')
PLACES = ('state_dict', 'model', 'model_state_dict', 'module')
AVERAGES = ('model_ema', 'state_dict_ema')


def extract_state_dict(content: dict, weights: str = 'default') -> dict:
    """Return the state dict inside a checkpoint file's content.

    Args:
        content (dict): Content of a file of mmengine, mmpretrain, timm, the official code, Lightning or torch's
            ``AveragedModel``, or a plain state dict.
        weights (str): ``'ema'`` for the moving average, ``'raw'`` for the weights that the optimizer trained,
            ``'default'`` for those that the file's own library loads first: the average for mmengine, the trained
            weights for others. Defaults to ``'default'``.

    Raises:
        ValueError: If the file has no such weights, or ``weights`` is unknown.
    """
    if weights not in WEIGHTS:
        raise UserError(f'weights={weights!r} is unknown: choose from {list(WEIGHTS)}')
    found = _find(content)
    if weights not in found:
        raise UserError(
            f"weights={weights!r}: the file holds no moving average ({', '.join(AVERAGES)}, mmengine's "
            f'ema_state_dict); its keys are {", ".join(map(str, list(content)[:10]))}'
        )
    names = [name for name in found[weights] if not isinstance(name, str)]
    if names:
        raise UserError(f'a weight is named {names[0]!r}, and names are text: the file holds no state dict')
    return _without_wrapper(found[weights], 'pytorch-lightning_version' in content)


def _without_wrapper(weights: dict, is_lightning: bool) -> dict:
    """Remove the prefix that torch's ``AveragedModel`` and Lightning put before every name."""
    if 'n_averaged' in weights and all(name.startswith('module.') for name in weights if name != 'n_averaged'):
        return {name[len('module.') :]: value for name, value in weights.items() if name != 'n_averaged'}
    attributes = {name.partition('.')[0] for name in weights}
    if is_lightning and len(attributes) == 1:  # attribute of the LightningModule that holds the model
        return {name.partition('.')[2]: value for name, value in weights.items()}
    return weights


def _find(content: dict) -> dict[str, dict]:
    """Return the state dicts in a file by the names in ``WEIGHTS``."""
    place = next((content[key] for key in PLACES if isinstance(content.get(key), dict)), None)
    average = next((content[key] for key in AVERAGES if isinstance(content.get(key), dict)), None)
    swapped = content.get('ema_state_dict')
    if place is not None and isinstance(swapped, dict):
        return dict(
            default=place,
            ema=place,
            raw={key[len('module.') :]: value for key, value in swapped.items() if key.startswith('module.')},
        )
    if average is None:
        whole = content if place is None else place
        return dict(default=whole, raw=whole)
    return dict(default=average, ema=average) if place is None else dict(default=place, raw=place, ema=average)
