"""Old dotted names of 0.1: importing one warns once and returns the object at its new place.

A finder at the end of ``sys.meta_path`` serves them, so no file has to remain where a module was.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from mmengine.registry import Registry

PACKAGE = __name__.partition('.')[0]
REMOVED_IN = '0.4'
# Modules of 0.1 -> the modules that now hold their contents; a module that is run as a command comes first
MOVED = {
    'analysis.costs': 'commands.flops',
    'analysis.feature_tool': 'commands.features',
    'analysis.hidden_features': 'analysis.feature_hooks',
    'analysis.labelled_pictures': 'datasets.labelled_folder',
    'analysis.report': 'analysis.html',
    'analysis.run_report': 'commands.report',
    'analysis.subjects': 'analysis.models',
    'backbone': 'models.convnext_v2',
    'browse': 'commands.browse',
    'checkpoint.content': 'checkpoint.state_dict',
    'checkpoint.initializer': 'checkpoint.pretrained engine.hooks.matching_weights',
    'checkpoint.matching': 'engine.hooks.matching_weights checkpoint.strict',
    'checkpoint.moments': 'checkpoint.optimizer_state',
    'command': 'commands.run_tool',
    'convert': 'checkpoint.convert',
    'data_checks': 'commands.data_checks utils.config',
    'datasets.embedded': 'datasets.synthetic.writer',
    'datasets.labels': 'datasets.segmentation',
    'datasets.scenes': 'datasets.synthetic.scenes',
    'doctor': 'commands.doctor',
    'download': 'checkpoint.download',
    'execution': 'models.execution',
    'execution.base': 'models.execution.base ops.grid',
    'execution.cells': 'ops.cells ops.grid',
    'execution.dense': 'models.execution.dense',
    'execution.masked': 'models.execution.masked ops.cells',
    'execution.minkowski': 'models.execution.minkowski',
    'execution.packed': 'models.execution.packed',
    'export.command': 'commands.export',
    'faults': 'engine.hooks.preemption engine.hooks.finite_loss commands.run_tool',
    'foreign_models': 'checkpoint.cross_check',
    'launch': 'commands.train commands.arguments commands.runner commands.test utils.config',
    'layer_decay': 'engine.layer_decay models.layer_depth',
    'layers': 'models.layers ops.reductions',
    'mixed_precision': 'models.fp32_detection',
    'ops.hidden': 'ops.mlp_passes',
    'ops.neighbours': 'ops.depthwise_triton',
    'ops.products': 'ops.matmul',
    'optim_wrapper': 'engine.mixed_precision',
    'pictures': 'datasets.image_files',
    'predict': 'commands.predict',
    'pretrain.channels': 'pretrain.multichannel',
    'pretrain.data': 'pretrain.dataset pretrain.sampler',
    'pretrain.hooks': 'pretrain.reconstruction',
    'pretrain.reconstruct': 'commands.reconstruct',
    'pretrain.resume': 'pretrain.loop',
    'quickstart': 'commands.quickstart',
    'recipes': 'utils.config',
    'response_norms': 'models.response_norms ops.grn models.grn',
    'safe_loading': 'checkpoint.load',
    'safe_saving': 'engine.hooks.checkpoint',
    'strategy': 'engine.fsdp2',
    'sweep': 'commands.sweep',
    'train_options': 'commands.train_flags engine.hooks.early_stopping engine.hooks.compile_backbone',
    'training_checkpoint': 'checkpoint.training_state',
    'typos': 'utils.suggestions',
    'versions': 'utils.compat',
}
PACKAGES = ('execution',)
# Names of 0.1 that have another name or place now, as MODULE.NAME -> MODULE.NAME
RENAMED = {
    'analysis.labelled_pictures.Pictures': 'datasets.labelled_folder.LabelledImages',
    'analysis.labelled_pictures.choose_pictures': 'datasets.labelled_folder.choose_images',
    'analysis.measures.Moments': 'analysis.measures.RunningStats',
    'checkpoint.content.unwrap': 'checkpoint.state_dict.extract_state_dict',
    'checkpoint.conversion.detect_dialect': 'checkpoint.conversion.detect_layout',
    'checkpoint.layouts.DIALECTS': 'checkpoint.layouts.LAYOUTS',
    'command.stated_mistake': 'commands.run_tool.user_message',
    'datasets.draw_scene': 'datasets.render_scene',
    'datasets.scenes.draw_scene': 'datasets.synthetic.scenes.render_scene',
    'pictures.list_pictures': 'datasets.image_files.list_images',
    'pretrain.channels.LoadPicture': 'pretrain.multichannel.LoadMultiChannelImage',
    'pretrain.channels.read_picture': 'pretrain.multichannel.decode_image',
    'pretrain.data.Draw': 'pretrain.sampler.SampleKey',
    'pretrain.data.DrawSampler': 'pretrain.sampler.DeterministicSampler',
    'pretrain.decoder.fill_hidden': 'pretrain.decoder.insert_mask_tokens',
    'pretrain.masking.DrawVisibleCells': 'pretrain.masking.FCMAEMaskGenerator',
    'pretrain.masking.hidden_cells_of': 'pretrain.masking.masked_cells_of',
    'checkpoint.DIALECTS': 'checkpoint.LAYOUTS',
    'checkpoint.MatchingWeightsHook': 'engine.hooks.MatchingWeightsHook',
    'checkpoint.detect_dialect': 'checkpoint.detect_layout',
    'checkpoint.skip_initial_weights_on_resume': 'engine.hooks.skip_initial_weights_on_resume',
    'checkpoint.unwrap': 'checkpoint.extract_state_dict',
    'launch.load_config': 'commands.arguments.load_run_config',  # of parsed arguments; load_config takes a path
    'pretrain.DrawSampler': 'pretrain.DeterministicSampler',
    'pretrain.DrawVisibleCells': 'pretrain.FCMAEMaskGenerator',
    'pretrain.LoadPicture': 'pretrain.LoadMultiChannelImage',
}


class MovedModule(ModuleType):
    """Module that looks names up in the modules that replaced it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name != '__all__':
            raise AttributeError(name)
        renamed = RENAMED.get(f'{self.__name__}.{name}'.partition('.')[2])
        if renamed is not None:
            return _import_name(renamed)
        for place in _places(self.__name__):
            if hasattr(import_module(place), name):
                return getattr(import_module(place), name)
        raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')


class MovedFinder(MetaPathFinder, Loader):
    """Finder for the modules of ``MOVED``; also runs them as commands for ``python -m``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition('.')
        if package != PACKAGE or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=name in PACKAGES)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        self._warn(module.__name__)

    def get_code(self, fullname: str) -> CodeType:
        """Return the code that ``python -m`` runs."""
        self._warn(fullname)
        source = f'from {_places(fullname)[0]} import main\nraise SystemExit(bool(main()))\n'
        return compile(source, f'<{fullname}>', 'exec')

    @staticmethod
    def _warn(name: str) -> None:
        warnings.warn(
            f'{name} is now {" and ".join(_places(name))}; the old name will be removed in {REMOVED_IN}',
            FutureWarning,
            stacklevel=3,
        )  # stacklevel: the import statement, above this finder


def _places(fullname: str) -> Sequence[str]:
    return [f'{PACKAGE}.{place}' for place in MOVED[fullname.partition('.')[2]].split()]


def register_moved() -> None:
    """Make the modules of ``MOVED`` importable under their old names."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())


def _import_name(dotted: str) -> Any:
    module, _, name = dotted.rpartition('.')
    return getattr(import_module(f'{PACKAGE}.{module}'), name)


def moved_names(module: str, lazy: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` for a package whose modules or names have moved.

    Args:
        module (str): The package's ``__name__``.
        lazy (Mapping, optional): Names of the package that are imported when they are used, with the module that has
            them. Defaults to None.
    """
    prefix = f'{module}.'.partition('.')[2]

    def get(name: str) -> Any:
        if lazy and name in lazy:
            return _import_name(f'{lazy[name]}.{name}')
        if f'{prefix}{name}' in MOVED:
            return import_module(f'{module}.{name}')
        renamed = RENAMED.get(f'{prefix}{name}')
        if renamed is None:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        _warn_of_name(f'{module}.{name}', f'{PACKAGE}.{renamed}')
        return _import_name(renamed)

    return get


def register_renamed(registry: Registry, old: str, cls: type) -> None:
    """Register a type's name of 0.1 for configs that still use it; building it warns.

    Args:
        registry (Registry): Registry of the type.
        old (str): Name of the type in 0.1.
        cls (type): The renamed type.
    """

    @wraps(cls, updated=())
    def build(*args: Any, **kwargs: Any) -> Any:
        _warn_of_name(f'type={old!r}', f'type={cls.__name__!r}')
        return cls(*args, **kwargs)

    registry.register_module(name=old, module=build)


def renamed_argument(old: str, new: str) -> Callable[[Callable], Callable]:
    """Return a decorator that also accepts a keyword of 0.1, with a warning.

    Args:
        old (str): Keyword in 0.1.
        new (str): Current keyword.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                _warn_of_name(f'{function.__name__}({old}=...)', f'{function.__name__}({new}=...)')
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


@cache
def _warn_of_name(old: str, new: str) -> None:
    warnings.warn(f'{old} is now {new}; the old name will be removed in {REMOVED_IN}', FutureWarning, stacklevel=3)
