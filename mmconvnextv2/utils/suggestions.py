"""Suggestions for misspelt keys, classes and overrides.

mmengine prints a traceback if it cannot build an object, and silently takes a misspelt override as a new key.
"""

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from .errors import UserError, raised_in_library

UNKNOWN_KEY = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w+)'")
REFUSALS = (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
UNKNOWN_TYPE = re.compile(r'(\w+) is not in the [\w.-]*::([\w ]+) registry')


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to a given one, None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), None)


def explain_build(error: BaseException) -> str | None:
    """Return one line for an error that mmengine raised while building from a config, None for any other error.

    The causes are a key that a class does not accept, a class that is not registered, or arguments that a library's
    class refuses.
    """
    text = ' '.join(str(error).split())
    key, kind = UNKNOWN_KEY.search(text), UNKNOWN_TYPE.search(text)
    built, given = _class_being_built(error)
    if isinstance(error, TypeError) and key and built is not None:
        known = list_arguments(built)
        return f'{built.__name__} has no argument {key[1]!r}{_did_you_mean(key[1], known)}; it has {", ".join(known)}'
    if isinstance(error, KeyError) and kind:
        return (
            f'type={kind[1]!r} is not registered as {kind[2]}{_did_you_mean(kind[1], list_types(kind[2]))}; '
            'see also custom_imports and default_scope'
        )
    if isinstance(error, REFUSALS) and built is not None and raised_in_library(error):
        plain = {name: value for name, value in given.items() if isinstance(value, (bool, float, int, str))}
        reason = f'{type(error).__name__}: {text.rstrip(".")[:500]}'
        return (
            f"type='{built.__name__}' of the config refuses its arguments, {plain}: {reason}. Correct them; "
            '--traceback shows where'
        )
    return None


def _class_being_built(error: BaseException) -> tuple[type | None, dict]:
    """Return the class that mmengine was building last, and its arguments; a base class may have raised the error."""
    frames = [
        frame.f_locals
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == 'build_from_cfg' and inspect.isclass(frame.f_locals.get('obj_cls'))
    ]
    return (frames[-1]['obj_cls'], frames[-1].get('args') or {}) if frames else (None, {})


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    meant = nearest(name, known)
    return f', did you mean {meant!r}?' if meant else ''


def list_arguments(kind: type) -> list[str]:
    """List the arguments of a class, and of its bases as far as it passes ``**kwargs`` on."""
    names: dict[str, None] = {}
    for owner in inspect.getmro(kind):
        constructor = vars(owner).get('__init__')
        parameters = list(inspect.signature(constructor).parameters.values()) if constructor else []
        plain = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        names.update(dict.fromkeys(plain[1:]))
        if parameters and not any(one.kind == one.VAR_KEYWORD for one in parameters):
            break
    return list(names)


def list_types(name: str) -> list[str]:
    """List the classes in a registry, such as ``'model'``, and in its children."""
    families = [(one, *one.children.values()) for one in vars(mmengine.registry).values() if isinstance(one, Registry)]
    registries = [one for family in families if name in [member.name for member in family] for one in family]
    return sorted({kind for registry in registries for kind in registry.module_dict})


def check_overrides(cfg: Config, options: dict | None) -> None:
    """Refuse an override whose first name is not in the config but very similar to one that is.

    Raises:
        ValueError: Naming both names.
    """
    for option in options or {}:
        name = option.split('.')[0]
        meant = nearest(name, cfg.keys(), cutoff=0.8) if name not in cfg else None
        if meant:
            raise UserError(f'--cfg-options {option}: the config has no {name!r}, did you mean {meant!r}?')
