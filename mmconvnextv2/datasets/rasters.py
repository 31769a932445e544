"""Rasters: images of any size and number of bands, read and written window by window.

GeoTIFF, plain TIFF, PNG and JPEG are read by rasterio (GDAL), ``.npy`` arrays through a memory map. Memory depends on
the size of the windows, not on that of the file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import FileError, MissingFileError, UserError
from .image_files import class_colours

RASTERS = ('.tif', '.tiff', '.png', '.jpg', '.jpeg', '.npy')
CACHE_MIB = 64  # of GDAL's blocks; its default is 5 % of the machine's memory
REDUCED = 512  # pixels along a side of the windows from which a reduced image is taken
BLOCK = 512  # pixels along a side of a written file's blocks
IGNORED = 255  # label of pixels without data


class Window(NamedTuple):
    """Rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right of it."""
        return self.left + self.width

    def slices(self, origin: tuple[int, int] = (0, 0)) -> tuple[slice, slice]:
        """Return its rows and columns in an array whose first pixel is ``origin`` (top, left)."""
        top, left = self.top - origin[0], self.left - origin[1]
        return slice(top, top + self.height), slice(left, left + self.width)

    def intersection(self, other: 'Window') -> 'Window':
        """Return what two windows share; its height or width is 0 if they share nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height, width = min(self.bottom, other.bottom) - top, min(self.right, other.right) - left
        return Window(top, left, max(height, 0), max(width, 0))

    def __str__(self) -> str:
        return f'rows {self.top} to {self.bottom - 1}, columns {self.left} to {self.right - 1}'


def import_rasterio() -> Any:
    """Import rasterio.

    Raises:
        ValueError: If it is not installed; the message says how to install it.
    """
    try:
        return import_module('rasterio')
    except ImportError as error:
        raise UserError(
            'rasterio is not installed, and reads and writes rasters: install it with `make geo`, or with '
            "`pip install 'mmconvnextv2[geo]'`"
        ) from error


@contextmanager
def limited_cache() -> Iterator[Any]:
    """Yield rasterio, with GDAL's cache of blocks limited to ``CACHE_MIB``."""
    rasterio = import_rasterio()
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MIB):
        yield rasterio


class Raster:
    """An image file that is read window by window.

    Args:
        path (str): GeoTIFF, TIFF, PNG, JPEG, or ``.npy`` with an array (H, W) or (H, W, bands).
        bands (Sequence[int], optional): Numbers of the bands to read, from 1, in this order. Defaults to None, all but
            an alpha band.
        channels (int, optional): Bands that the model reads. A file of another number is an error, except grey and
            colour for models of 1 and 3 channels, which :func:`~mmconvnextv2.engine.inference.images.to_pipeline_image`
            converts. Defaults to None, any number.
        skip_corrupt (bool): Whether blocks that cannot be decoded are read as no-data pixels, rather than an error.
            Defaults to False.

    Attributes:
        height (int): Rows H.
        width (int): Columns W.
        num_bands (int): Bands that :meth:`read` returns.
        crs (rasterio.crs.CRS, optional): Coordinate reference system.
        transform (affine.Affine, optional): From columns and rows to coordinates; None without georeference.
        corrupt (list[Window]): Blocks that were skipped.

    Raises:
        ValueError: If the file cannot be read, or its bands are not those of the model.
    """

    def __init__(
        self,
        path: str,
        bands: Sequence[int] | None = None,
        channels: int | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        if not os.path.isfile(path):
            raise MissingFileError(f'{path} does not exist')
        self.path, self.skip_corrupt = path, skip_corrupt
        self.crs = self.transform = self.nodata = self.palette = None
        self.corrupt: list[Window] = []
        self._array = self._file = None
        if path.lower().endswith('.npy'):
            self._open_array()
        else:
            self._open_file()
        self.bands = self._choose(bands, channels)
        self.num_bands = len(self.bands)

    def _open_array(self) -> None:
        try:
            array = np.load(self.path, mmap_mode='r', allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise FileError(f'{self.path} is not an array of numbers: {error}') from error
        if array.ndim not in (2, 3) or array.dtype.kind not in 'biuf' or not all(array.shape):
            raise UserError(
                f'{self.path} is {array.dtype} of shape {array.shape}: expected numbers (height, width) or '
                '(height, width, bands)'
            )
        self._array = array
        self.height, self.width = array.shape[:2]
        self.count, self.dtype, self.alpha = (1 if array.ndim == 2 else array.shape[2]), array.dtype, None
        self.masked = False

    def _open_file(self) -> None:
        rasterio = import_rasterio()
        import_module('warnings').filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
        try:
            with limited_cache():
                self._file = file = rasterio.open(self.path)
        except rasterio.errors.RasterioError as error:
            raise FileError(f'{self.path} cannot be read as a raster ({_say(error)})') from error
        self.height, self.width, self.count = file.height, file.width, file.count
        self.dtype = np.dtype(file.dtypes[0])
        if self.dtype.kind not in 'iuf':
            raise UserError(f'{self.path} has values of type {self.dtype}: expected real numbers')
        interpretations = [one.name for one in file.colorinterp]
        self.alpha = file.count if interpretations[-1] == 'alpha' else None
        self.palette = file.colormap(1) if interpretations[0] == 'palette' else None
        self.nodata = file.nodata
        self.masked = any('per_dataset' in (flag.name for flag in flags) for flags in file.mask_flag_enums)
        if not file.transform.is_identity:
            self.transform, self.crs = file.transform, file.crs
        orientation = file.tags(ns='EXIF').get('EXIF_Orientation') or file.tags().get('EXIF_Orientation')
        if orientation not in (None, '1'):
            raise UserError(
                f'{self.path} is stored rotated (EXIF orientation {orientation}), which windows do not follow: '
                'store it upright, or predict without --tile'
            )

    def _choose(self, bands: Sequence[int] | None, channels: int | None) -> list[int]:
        """Return the numbers of the bands to read."""
        if bands is not None:
            wrong = [one for one in bands if not 1 <= one <= self.count]
            if wrong or not bands:
                raise UserError(f'bands {list(bands)}: {self.path} has the bands 1 to {self.count}')
            chosen = list(bands)
        else:
            chosen = [one for one in range(1, self.count + 1) if one != self.alpha or self.count == channels]
        read = 3 if self.palette is not None else len(chosen)
        if channels is not None and read != channels:
            if channels not in (1, 3) or read not in (1, 3):
                asked = '' if bands is None else f', of which {len(chosen)} are chosen'
                raise UserError(
                    f'{self.path} has {self.count} bands ({self.dtype}){asked}, but the model reads {channels}: choose '
                    f'as many with --bands, for example --bands {" ".join(map(str, range(1, channels + 1)))}'
                    if self.count >= channels
                    else f'{self.path} has {self.count} bands, but the model reads {channels}: choose another file'
                )
        return chosen

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read a window.

        Returns:
            tuple[np.ndarray]: Values (h, w, bands) as stored, except that values which are not finite are 0, and bool
            (h, w), False at pixels without data: where the file's mask or alpha band says so, where all bands have its
            no-data value, where a value is not finite, and in skipped blocks.

        Raises:
            OSError: If a block cannot be decoded; the message names the file and the window.
        """
        if self._array is not None:
            values = np.array(self._array[window.slices()])
            values = values.reshape(*values.shape[:2], -1)[..., [band - 1 for band in self.bands]]
            valid = np.ones(values.shape[:2], bool)
        else:
            values, valid = self._read_file(window)
            if self.palette is not None:
                table = np.zeros((max(self.palette) + 1, 3), np.uint8)
                table[list(self.palette)] = [colour[:3] for colour in self.palette.values()]
                values = table[np.minimum(values[..., 0], len(table) - 1)]
        if values.dtype.kind == 'f':
            finite = np.isfinite(values)
            if not finite.all():
                valid &= finite.all(2)
                values = np.where(finite, values, 0).astype(values.dtype)
        return values, valid

    def _read_file(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        errors = import_rasterio().errors
        try:
            return self._decode(window)
        except errors.RasterioError as error:
            if not self.skip_corrupt:
                raise FileError(
                    f'{self.path}: {window} cannot be decoded ({_say(error)}): repair the file, or treat its damaged '
                    'blocks as no data with --skip-corrupt'
                ) from error
        assert self._file is not None  # else there is nothing to decode
        values = np.zeros((window.height, window.width, self.num_bands), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        high, wide = self._file.block_shapes[0]
        for top in range(window.top - window.top % high, window.bottom, high):
            for left in range(window.left - window.left % wide, window.right, wide):
                block = Window(top, left, high, wide).intersection(window)
                place = block.slices((window.top, window.left))
                try:
                    values[place], valid[place] = self._decode(block)
                except errors.RasterioError:
                    self.corrupt.append(block)
        return values, valid

    def _decode(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        area = import_module('rasterio.windows').Window(window.left, window.top, window.width, window.height)
        with limited_cache():
            values = np.ascontiguousarray(self._file.read(self.bands, window=area).transpose(1, 2, 0))
            if self.masked:
                return values, self._file.dataset_mask(window=area) > 0
        if self.nodata is None or np.isnan(self.nodata):
            return values, np.ones(values.shape[:2], bool)
        return values, (values != np.asarray(self.nodata).astype(values.dtype)).any(2)

    def read_reduced(self, longest: int) -> np.ndarray:
        """Read the whole image with at most ``longest`` pixels along its longer side, by nearest neighbours.

        Damaged blocks are black if ``skip_corrupt``.
        """
        ratio = max(self.height, self.width) / longest
        if ratio <= 1:
            return self.read(Window(0, 0, self.height, self.width))[0]
        height, width = max(round(self.height / ratio), 1), max(round(self.width / ratio), 1)
        if self._file is not None and self._file.overviews(1) and self.palette is None:
            with suppress(import_rasterio().errors.RasterioError), limited_cache():
                return self._file.read(self.bands, out_shape=(self.num_bands, height, width)).transpose(1, 2, 0)
        # GDAL would decode each block once per row of the result, since the cache is smaller than a row of blocks
        rows, columns = np.arange(height) * self.height // height, np.arange(width) * self.width // width
        high, wide = (1, 1) if self._file is None else self._file.block_shapes[0]
        wide *= -(-REDUCED // wide)  # windows of whole blocks, of about as many pixels whether tiles or strips
        high *= max(REDUCED**2 // (high * wide), 1)
        strips = []
        for top in range(0, self.height, high):
            taken = rows[(rows >= top) & (rows < top + high)] - top
            strip = []
            for left in range(0, self.width, wide):
                area = Window(top, left, min(high, self.height - top), min(wide, self.width - left))
                places = columns[(columns >= left) & (columns < left + wide)] - left
                strip.append(self.read(area)[0][taken][:, places])
            strips.append(np.concatenate(strip, 1))
        return np.concatenate(strips)

    def coordinates(self, points: np.ndarray) -> np.ndarray:
        """Return the coordinates (N, 2) of points (N, 2) given as columns and rows of pixel corners."""
        if self.transform is None:
            return points
        across, down, left, along, below, top = self.transform[:6]
        columns, rows = points.T
        return np.stack([across * columns + down * rows + left, along * columns + below * rows + top], 1)

    @property
    def is_georeferenced(self) -> bool:
        """Whether pixels have coordinates."""
        return self.transform is not None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._array = None

    def __enter__(self) -> 'Raster':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _say(error: BaseException) -> str:
    """Return GDAL's own words, which are in the cause of what rasterio raises."""
    text = str(error.__cause__ or error)
    return ' '.join(text.split())[:200]


def decode_many_bands(content: bytes) -> np.ndarray | None:
    """Decode the content of a TIFF of more than four bands, which OpenCV does not read.

    Returns:
        np.ndarray, optional: Values (H, W, bands) as stored; None for other files, damaged ones, and without rasterio.
    """
    try:
        io, errors = import_module('rasterio.io'), import_module('rasterio.errors')
    except ImportError:
        return None
    try:
        with io.MemoryFile(content) as memory, memory.open() as file:
            return np.ascontiguousarray(file.read().transpose(1, 2, 0)) if file.count > 4 else None
    except errors.RasterioError:
        return None


def write_labels(
    path: str,
    read_block: Callable[[Window], np.ndarray],
    raster: Raster,
    classes: Sequence[str],
    palette: Sequence | None = None,
) -> None:
    """Write a label map as a tiled and compressed GeoTIFF with the georeference of an image, block by block.

    Args:
        path (str): File to write.
        read_block (Callable): Function that returns the labels (h, w) of a window; 255 marks pixels without data, 65535
            with more than 255 classes.
        raster (Raster): The image.
        classes (Sequence[str]): Class names by label, kept as tags of the band.
        palette (Sequence, optional): RGB colours by label, 0 to 255. Defaults to None, distinct colours.
    """
    dtype = label_dtype(len(classes))
    size, place = dict(height=raster.height, width=raster.width), dict(crs=raster.crs, transform=raster.transform)
    colours = class_colours(len(classes))
    if palette is not None:
        colours[: len(palette)] = palette[: len(classes)]
    with limited_cache() as rasterio:
        place = {name: value for name, value in place.items() if value is not None}
        blocks = dict(tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress='deflate', bigtiff='if_safer')
        file = rasterio.open(
            path, 'w', driver='GTiff', count=1, dtype=dtype.name, nodata=np.iinfo(dtype).max, **size, **place, **blocks
        )
        with file:
            if dtype == np.uint8:
                file.write_colormap(1, {label: tuple(map(int, colour)) for label, colour in enumerate(colours)})
            file.update_tags(1, **{f'class_{label}': name for label, name in enumerate(classes)})
            for block in windows_of(raster.height, raster.width, BLOCK):
                area = import_module('rasterio.windows').Window(block.left, block.top, block.width, block.height)
                file.write(read_block(block).astype(dtype), 1, window=area)


def label_dtype(num_classes: int) -> np.dtype:
    """Return the smallest dtype that holds all labels and one value of no data, its largest."""
    return np.dtype(np.uint8 if num_classes <= IGNORED else np.uint16)


def windows_of(height: int, width: int, side: int) -> list[Window]:
    """Split an image into windows of at most ``side`` pixels, in raster order."""
    return [
        Window(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
