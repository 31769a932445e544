"""The state dict inside a checkpoint file: under which key, behind which prefix, with or without its moving average.

mmengine's ``EMAHook`` writes the average into ``state_dict`` and the trained weights into ``ema_state_dict``; timm and
the official code write them beside each other.
"""

from ..utils.errors import UserError

WEIGHTS = ('default', 'raw', 'ema')
PLACES = ('state_dict', 'model', 'model_state_dict', 'module')
AVERAGES = ('model_ema', 'state_dict_ema')


def extract_state_dict(content: dict, weights: str = 'default') -> dict:
    """Return the state dict inside a checkpoint file's content.

    Args:
        content (dict): Of a file of mmengine, mmpretrain, timm, the official code, Lightning or torch's
            ``AveragedModel``, or a state dict as it is.
        weights (str): ``'ema'``, the moving average; ``'raw'``, what the optimizer trained; ``'default'``, what the
            file's own library loads first: the average of mmengine's, the trained ones of others. Defaults to
            ``'default'``.

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
    """Take off what torch's ``AveragedModel`` and Lightning put in front of every name."""
    if 'n_averaged' in weights and all(name.startswith('module.') for name in weights if name != 'n_averaged'):
        return {name[len('module.') :]: value for name, value in weights.items() if name != 'n_averaged'}
    attributes = {name.partition('.')[0] for name in weights}
    if is_lightning and len(attributes) == 1:  # the module's attribute that holds the model
        return {name.partition('.')[2]: value for name, value in weights.items()}
    return weights


def _find(content: dict) -> dict[str, dict]:
    """Return what can be chosen, by the names of ``WEIGHTS``."""
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
