"""Samples of several named arrays, such as bands, elevation, land cover and climate of one place.

A sample is one ``.npz`` file, or a folder of ``.npy`` files whose names are those of the arrays. Its maps are stacked
to one image, so that any transform of mmcv and mmpretrain that crops or flips an image moves all of them alike.
"""

import io
import os
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches

import mmengine.fileio as fileio
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.utils import scandir
from mmpretrain.datasets.transforms import PackInputs
from mmpretrain.registry import DATASETS, TRANSFORMS

from ..utils.errors import FileError, MissingFileError, UserError
from .dataset import UnlabelledImages
from .targets import MISSING, Target, build_targets

ARCHIVE, ARRAY = '.npz', '.npy'


class Sample:
    """Arrays of one sample, read when they are asked for.

    Args:
        path (str): ``.npz`` file, or folder of ``.npy`` files.

    Raises:
        OSError: If the file is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if os.path.isdir(path):
            self.names = sorted(name[: -len(ARRAY)] for name in os.listdir(path) if name.endswith(ARRAY))
            self._archive = None
            return
        try:
            self._archive = np.load(io.BytesIO(fileio.get(path)), allow_pickle=False)
            self.names = sorted(self._archive.files)
        except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise FileError(f'{path} is not an .npz file: {error}') from error

    def read(self, name: str) -> np.ndarray:
        """Return an array.

        Raises:
            OSError: If it is damaged, or holds objects.
            ValueError: If the sample lacks it.
        """
        if name not in self.names:
            near = get_close_matches(name, self.names, 1)
            hint = f' (did you mean {near[0]!r}?)' if near else ''
            raise UserError(
                f'{self.path} has the arrays {self.names}, but not {name!r}{hint}: name the arrays in dataset.inputs '
                'and dataset.targets as in the files, or give a target optional=True if only some samples have it'
            )
        try:
            if self._archive is not None:
                return self._archive[name]
            return np.load(os.path.join(self.path, name + ARRAY), allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileError(f'{name!r} of {self.path} is not an array of numbers: {error}') from error


@DATASETS.register_module()
class NamedArrays(UnlabelledImages):
    """Samples of named arrays below a folder: ``.npz`` files, and folders of ``.npy`` files.

    ::

        data/places/
            0001.npz                    arrays optical, elevation, land_cover, biome, climate
            west/0002/optical.npy       the same as files
            west/0002/elevation.npy

    Maps are (H, W, channels) or (H, W), all of one size per sample. Vectors have shape (channels, ), classes of images
    and text such as a processing level no dimension.

    Args:
        data_root (str): Folder, searched recursively.
        inputs (dict[str, int]): Name and number of bands of each array that the encoder sees, in this order.
        targets (dict[str, dict], optional): Targets by array name, as of ``MultiTargetHead``. Defaults to None.
        regions (str, optional): Name of an array (H, W) that marks cells to show (1) or mask (2); samples may lack it.
            Defaults to None.
        meta (Sequence[str]): Names of arrays without dimensions that become metainfo, such as the kind in
            ``statistics_key`` of ``FCMAEDataPreprocessor``. Defaults to ().
        channels_first (bool): Whether maps are (channels, H, W), as rasterio reads them. Defaults to False.
        pipeline (Sequence): Transforms: ``LoadNamedArrays``, crops and flips, ``SplitNamedArrays``,
            ``FCMAEMaskGenerator``, ``PackNamedArrays``.
        kwargs: Arguments of ``UnlabelledImages``.

    Raises:
        ValueError: If inputs or targets are not valid, or the first sample lacks one of them.
        FileNotFoundError: If the folder is missing or has no sample.
    """

    def __init__(
        self,
        data_root: str,
        inputs: dict[str, int],
        targets: dict[str, dict] | None = None,
        regions: str | None = None,
        meta: Sequence[str] = (),
        channels_first: bool = False,
        pipeline: tuple = (),
        **kwargs,
    ) -> None:
        if not inputs or not all(isinstance(count, int) and count > 0 for count in inputs.values()):
            raise UserError(f'dataset.inputs={inputs}: expected dict(NAME=number of bands, ...)')
        self.inputs = dict(inputs)
        built = build_targets(targets) if targets else {}
        self.targets = {name: target for name, target in built.items() if target.source is None}
        self.regions, self.meta, self.channels_first = regions, tuple(meta), channels_first
        super().__init__(data_root, pipeline, extensions=(ARCHIVE,), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List files and folders of samples, sorted by path."""
        root = os.path.normpath(self.img_prefix or self.data_root)
        if not os.path.isdir(root):
            raise MissingFileError(f'{root} does not exist: set train_dataloader.dataset.data_root')
        paths = self.list_samples([root])
        if root in paths:
            raise UserError(f'{root} holds {ARRAY} files itself: put those of a sample into a folder of their own')
        return [dict(img_path=path) for path in paths]

    @staticmethod
    def list_samples(paths: Sequence[str]) -> list[str]:
        """Return the samples at and below paths; those below a folder are sorted.

        Raises:
            FileNotFoundError: If a path is missing or has no sample.
        """
        samples = []
        for path in paths:
            if os.path.isfile(path):
                samples.append(path)
                continue
            if not os.path.isdir(path):
                raise MissingFileError(f'{path} does not exist')
            found = scandir(path, suffix=(ARCHIVE, ARRAY), recursive=True)
            places = {name if name.endswith(ARCHIVE) else os.path.dirname(name) for name in found}
            if not places:
                raise MissingFileError(f'{path} has no {ARCHIVE} file, and no folder with {ARRAY} files')
            samples += [os.path.normpath(os.path.join(path, place)) for place in sorted(places)]
        return samples

    def get_data_info(self, idx: int) -> dict:
        """Return a sample's path, and what to read from it."""
        return {**super().get_data_info(idx), 'arrays': self}


@TRANSFORMS.register_module()
class LoadNamedArrays(BaseTransform):
    """Read the arrays that a ``NamedArrays`` data set names.

    Required keys: ``img_path``, ``arrays``. Added keys: ``img`` (H, W, C), float32, all maps one after the other;
    ``slices``, their channels by name; ``vectors``, the targets of the image by name; ``img_shape``, ``ori_shape``, and
    the names in ``meta``.
    """

    def transform(self, results: dict) -> dict:
        """Read the sample.

        Raises:
            OSError: If it is damaged.
            ValueError: If an array is missing or has another shape, or a class is outside the range.
        """
        wanted: NamedArrays = results['arrays']
        sample = Sample(results['img_path'])
        maps = {name: self._map(sample, name, count, wanted) for name, count in wanted.inputs.items()}
        height, width = next(iter(maps.values())).shape[:2]
        vectors = {}
        for name, target in wanted.targets.items():
            if target.optional and name not in sample.names:
                shape = (height, width, target.depth) if target.of_pixels else (target.depth,)
                array = np.full(shape, MISSING if target.has_classes else np.nan, np.float32)
            else:
                array = self._target(sample, name, target, wanted)
            (maps if target.of_pixels else vectors)[_stacked(name)] = array
        if wanted.regions is not None:
            known = wanted.regions in sample.names
            empty = np.zeros((height, width, 1), np.float32)
            maps[_stacked(wanted.regions)] = self._map(sample, wanted.regions, 1, wanted) if known else empty
        for name, one in maps.items():
            if one.shape[:2] != (height, width):
                raise UserError(
                    f'{sample.path}: {name.strip()!r} is {one.shape[0]}x{one.shape[1]} pixels, the first input '
                    f'{height}x{width}: resample the maps of a sample to one size'
                )
        ends = np.cumsum([one.shape[2] for one in maps.values()])
        results['slices'] = {
            name: slice(int(end) - one.shape[2], int(end)) for (name, one), end in zip(maps.items(), ends)
        }
        results['img'] = np.concatenate(list(maps.values()), axis=2)
        results['img_shape'] = results['ori_shape'] = (height, width)
        results['vectors'] = vectors
        results.update({name: sample.read(name).item() for name in wanted.meta})
        return results

    @staticmethod
    def _map(sample: Sample, name: str, channels: int, wanted: NamedArrays) -> np.ndarray:
        """Return a map (H, W, channels), float32."""
        pixels = _numbers(sample, name)
        pixels = pixels.transpose(1, 2, 0) if wanted.channels_first and pixels.ndim == 3 else pixels
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] != channels:
            order = '(channels, H, W)' if wanted.channels_first else '(H, W, channels)'
            raise UserError(
                f'{name!r} of {sample.path} has shape {sample.read(name).shape}, expected {order} with {channels} '
                'bands: set dataset.inputs, or channels of the target, to the number of bands in the files'
                f'{_hint(pixels, channels, wanted.channels_first)}'
            )
        return pixels.astype(np.float32)

    def _target(self, sample: Sample, name: str, target: Target, wanted: NamedArrays) -> np.ndarray:
        """Return a target's map (H, W, C) or vector (C, ), float32; classes as indices."""
        if target.of_pixels:
            array = self._map(sample, name, target.depth, wanted)
        else:
            array = _numbers(sample, name).reshape(-1).astype(np.float32)
            if array.shape != (target.depth,):
                raise UserError(
                    f'{name!r} of {sample.path} has {len(array)} values: expected {target.depth}, '
                    f'{"the index of a class" if target.has_classes else "channels of the target"}'
                )
        return class_indices(array, target, f'{name!r} of {sample.path}') if target.has_classes else array


def class_indices(labels: np.ndarray, target: Target, place: str) -> np.ndarray:
    """Return class indices of labels as in the files, -1 where missing.

    Args:
        labels (np.ndarray): Labels, float, NaN where missing.
        target (Target): ``PixelClasses`` or ``ImageClasses``.
        place (str): What the labels are, for the error.

    Raises:
        ValueError: If a label is none of the classes.
    """
    missing = np.isnan(labels) | (labels == target.ignore_index)  # type: ignore[attr-defined]
    values = np.asarray(target.labels if target.labels is not None else range(target.num_outputs))  # type: ignore
    order = np.argsort(values)
    nearest = order[
        np.searchsorted(values, np.where(missing, values[0], labels), sorter=order).clip(0, len(values) - 1)
    ]
    wrong = ~missing & (values[nearest] != labels)
    if wrong.any():
        raise UserError(f'{place}: {target.describe_index(float(labels[wrong][0]))}')  # type: ignore[attr-defined]
    return np.where(missing, MISSING, nearest).astype(np.float32)


def _stacked(name: str) -> str:
    """Return the key of a target or region among the maps: inputs may have the same name."""
    return f' {name}'


def _hint(pixels: np.ndarray, channels: int, channels_first: bool) -> str:
    """Say if the axes of a map seem to be in the other order."""
    other = channels_first and pixels.ndim == 3 and pixels.shape[1] == channels
    if other or (not channels_first and pixels.ndim == 3 and pixels.shape[0] == channels):
        return f', or dataset.channels_first={not channels_first}'
    return ''


def _numbers(sample: Sample, name: str) -> np.ndarray:
    array = sample.read(name)
    if array.dtype.kind not in 'biuf':
        raise FileError(f'{name!r} of {sample.path} is an array of {array.dtype}: expected real numbers')
    return array


@TRANSFORMS.register_module()
class SplitNamedArrays(BaseTransform):
    """Split the image of ``LoadNamedArrays`` after crops and flips.

    Required keys: ``img``, ``slices``, ``vectors``, ``arrays``. Changed key: ``img``, the inputs alone. Added keys:
    ``targets``, by name: float32 (H, W, C) or (C, ), classes int64 (H, W) or (); with regions, ``gt_seg_map``.
    """

    def transform(self, results: dict) -> dict:
        """Split the image."""
        wanted: NamedArrays = results['arrays']
        image, slices = results['img'], results['slices']
        targets = {}
        for name, target in wanted.targets.items():
            array = image[..., slices[_stacked(name)]] if target.of_pixels else results['vectors'][_stacked(name)]
            targets[name] = array[..., 0].astype(np.int64) if target.has_classes else array
        results['targets'] = targets
        if wanted.regions is not None:
            results['gt_seg_map'] = image[..., slices[_stacked(wanted.regions)]][..., 0]
        results['img'] = image[..., : slices[list(wanted.inputs)[-1]].stop]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class PackNamedArrays(PackInputs):
    """``PackInputs`` with the targets of ``SplitNamedArrays``: maps (C, H, W), classes (H, W), vectors (C, )."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, ``data_samples`` and ``targets``."""
        packed = super().transform(results)
        packed['targets'] = {name: _to_tensor(array) for name, array in results['targets'].items()}
        return packed


def measure_statistics(dataset: NamedArrays, num_samples: int = 1000, kind: str | None = None) -> dict[str, dict]:
    """Return mean and standard deviation of each channel of inputs and targets, as a config takes them.

    Missing values are left out: NaN, infinity and ``no_data`` of targets.

    Args:
        dataset (NamedArrays): Data set; its pipeline is not run.
        num_samples (int): Number of samples to read, at equal distances. Defaults to 1000.
        kind (str, optional): Name in ``meta``; the result is then a dict by its values. Defaults to None.

    Returns:
        dict[str, dict]: ``dict(mean=[...], std=[...])`` by name, or such dicts by kind and name; NaN for a channel that
        no sample has.

    Raises:
        ValueError: If the kind is not in ``meta``.

    Examples:
        >>> measure_statistics(dataset)['elevation']
        {'mean': [412.7], 'std': [305.2]}
    """
    if kind is not None and kind not in dataset.meta:
        raise UserError(f'kind={kind!r} is not in dataset.meta={dataset.meta}: add it there')
    load, sums = LoadNamedArrays(), {}  # (kind, name): number, sum and sum of squares by channel
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(num_samples, len(dataset))).astype(int)):
        results = load.transform(dataset.get_data_info(int(index)))
        arrays = {name: results['img'][..., results['slices'][name]] for name in dataset.inputs}
        for name, target in dataset.targets.items():
            if not target.has_classes:
                key = _stacked(name)
                array = results['img'][..., results['slices'][key]] if target.of_pixels else results['vectors'][key]
                arrays[name] = target.prepare(torch.from_numpy(array)).numpy()
        for name, array in arrays.items():
            values = array.reshape(-1, array.shape[-1]).astype(np.float64)
            there = np.isfinite(values)
            values = np.where(there, values, 0)
            moments = np.stack([there.sum(0), values.sum(0), np.square(values).sum(0)])
            group = results[kind] if kind is not None else None
            sums[group, name] = sums.get((group, name), 0) + moments
    measured: dict = {}
    for (group, name), (count, total, squares) in sums.items():
        with np.errstate(invalid='ignore'):
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        one = dict(mean=mean.tolist(), std=std.tolist())
        (measured if kind is None else measured.setdefault(group, {}))[name] = one
    return measured


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    array = np.asarray(array)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1) if array.ndim == 3 else array).copy())
