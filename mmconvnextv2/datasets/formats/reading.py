"""Readers of COCO json (CVAT, Roboflow, Label Studio), YOLO folders, labelme, VIA and Label Studio's own json."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ...utils.errors import MissingFileError, UserError
from ..coco import decode_json
from ..image_files import EXTENSIONS
from .labels import LabelledImage, Labels, Shape, box, ellipse

SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val', test='val')


def read_labels(source: str) -> Labels:
    """Read an export of a labelling tool.

    Args:
        source (str): A COCO, VIA or Label Studio json; or a folder with such files, with labelme's json per image, or
            with YOLO's ``labels`` and ``data.yaml`` or ``classes.txt``.

    Raises:
        ValueError: If the source does not exist or its format is not known; the message lists what was looked for.
    """
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f'{source} does not exist')
    files = sorted(path.rglob('*.json')) if path.is_dir() else [path]
    found = [(file, _load(file)) for file in files]
    for read in (_read_coco, _read_via, _read_label_studio, _read_labelme):
        labels = read(found)
        if labels is not None:
            return labels
    if path.is_dir():
        labels = _read_yolo(path)
        if labels is not None:
            return labels
    raise UserError(
        f'{source} is in no known format: expected COCO json (CVAT: "COCO 1.0", Roboflow: "COCO"), a YOLO folder with '
        'labels/ and data.yaml or classes.txt, json of labelme, VIA or Label Studio. For label PNGs pass --task segment'
    )


def _load(path: Path) -> Any:
    try:
        return decode_json(path.read_bytes(), str(path)) if path.stat().st_size else None
    except ValueError:
        return None


def split_of(path: Path) -> str | None:
    """Return the split that a folder or file name says, such as Roboflow's ``valid`` or ``instances_train.json``."""
    for part in (path.stem, path.parent.name, path.parent.parent.name):
        for word in part.lower().replace('-', '_').split('_'):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _read_coco(found: list[tuple[Path, Any]]) -> Labels | None:
    files = [(path, one) for path, one in found if isinstance(one, dict) and {'images', 'categories'} <= set(one)]
    if not files:
        return None
    images, classes, notes = [], [], []
    splits = {split_of(path) for path, _ in files}
    for path, content in files:
        names = {one['id']: str(one['name']) for one in content['categories']}
        by_id = {
            one['id']: LabelledImage(str(one['file_name']), [], split_of(path) if len(splits) > 1 else None)
            for one in content['images']
        }
        used = {one['category_id'] for one in content.get('annotations', [])}
        classes += [name for key, name in names.items() if name not in classes and (key in used or len(files) == 1)]
        lost = 0
        for one in content.get('annotations', []):
            if one.get('image_id') not in by_id or one.get('category_id') not in names:
                lost += 1
                continue
            by_id[one['image_id']].shapes.append(_coco_shape(one, names[one['category_id']]))
        if lost:
            notes.append(f'{path.name}: {lost} annotations of unknown images or categories were left out')
        images += by_id.values()
    unused = [name for name in classes if not any(name == shape.name for one in images for shape in one.shapes)]
    if unused:  # Roboflow adds a supercategory
        classes = [name for name in classes if name not in unused]
        notes.append(f'classes without objects were left out: {", ".join(unused)}')
    return Labels(images, classes, 'COCO json', notes)


def _coco_shape(one: dict, name: str) -> Shape:
    outline, crowd = one.get('segmentation'), bool(one.get('iscrowd'))
    if isinstance(outline, dict):
        return Shape(name, [], False, outline, crowd)
    polygons = [list(map(float, part)) for part in outline or [] if len(part) >= 6]
    if polygons:
        return Shape(name, polygons, False, None, crowd)
    return Shape(name, [box(*map(float, one['bbox']))] if one.get('bbox') else [], True, None, crowd)


def _read_via(found: list[tuple[Path, Any]]) -> Labels | None:
    images: list[LabelledImage] = []
    notes: list[str] = []
    for _, content in found:
        entries = content.get('_via_img_metadata', content) if isinstance(content, dict) else {}
        for entry in entries.values() if isinstance(entries, dict) else []:
            if isinstance(entry, dict) and {'filename', 'regions'} <= set(entry):
                regions = entry['regions']
                regions = list(regions.values()) if isinstance(regions, dict) else regions
                images.append(LabelledImage(entry['filename'], list(_via_shapes(regions, entry['filename'], notes))))
    return Labels(images, _classes_of(images), 'VIA json', notes) if images else None


def _via_shapes(regions: list[dict], file: str, notes: list[str]) -> Iterator[Shape]:
    for region in regions:
        form, attributes = region['shape_attributes'], region.get('region_attributes') or {}
        name = next((str(value) for value in attributes.values() if value and isinstance(value, str)), '')
        kind = form.get('name')
        if not name:
            notes.append(f'{file}: a region without a class was left out')
        elif kind in ('polygon', 'polyline'):
            points = [number for pair in zip(form['all_points_x'], form['all_points_y']) for number in pair]
            yield Shape(name, [list(map(float, points))])
        elif kind == 'rect':
            yield Shape(name, [box(form['x'], form['y'], form['width'], form['height'])], True)
        elif kind in ('circle', 'ellipse'):
            radius_x, radius_y = form.get('r', form.get('rx')), form.get('r', form.get('ry'))
            yield Shape(name, [ellipse(form['cx'], form['cy'], radius_x, radius_y)])
        else:
            notes.append(f'{file}: a region of type {kind!r} has no area and was left out')


def _read_label_studio(found: list[tuple[Path, Any]]) -> Labels | None:
    images: list[LabelledImage] = []
    notes: list[str] = []
    for _, content in found:
        for task in content if isinstance(content, list) else []:
            if isinstance(task, dict) and {'data', 'annotations'} <= set(task):
                file = next((value for value in task['data'].values() if isinstance(value, str)), '')
                image = LabelledImage(file.rpartition('/')[2].partition('?')[0])
                for result in (task['annotations'] or [{}])[-1].get('result', []):
                    image.shapes += _label_studio_shapes(result, image.file, notes)
                images.append(image)
    return Labels(images, _classes_of(images), 'Label Studio json', notes) if images else None


def _label_studio_shapes(result: dict, file: str, notes: list[str]) -> list[Shape]:
    value, kind = result.get('value') or {}, result.get('type')
    names = value.get(kind) or []
    if not names or not {'original_width', 'original_height'} <= set(result):
        return []
    x, y = result['original_width'] / 100, result['original_height'] / 100  # positions are in percent
    if kind == 'rectanglelabels':
        corners = [value['x'] * x, value['y'] * y, value['width'] * x, value['height'] * y]
        return [Shape(names[0], [box(*corners)], True)]
    if kind == 'polygonlabels':
        return [Shape(names[0], [[number for point in value['points'] for number in (point[0] * x, point[1] * y)]])]
    if kind == 'ellipselabels':
        return [Shape(names[0], [ellipse(value['x'] * x, value['y'] * y, value['radiusX'] * x, value['radiusY'] * y)])]
    notes.append(f'{file}: a result of type {kind!r} cannot be read: export brush masks as COCO or PNG')
    return []


def _read_labelme(found: list[tuple[Path, Any]]) -> Labels | None:
    images: list[LabelledImage] = []
    notes: list[str] = []
    for path, content in found:
        if isinstance(content, dict) and {'shapes', 'imagePath'} <= set(content):
            file = str(content['imagePath']).replace('\\', '/').rpartition('/')[2]
            image = LabelledImage(file, [], split_of(path))
            for shape in content['shapes']:
                image.shapes += _labelme_shapes(shape, file, notes)
            images.append(image)
    if {image.split for image in images} != {'train', 'val'}:
        for image in images:
            image.split = None
    return Labels(images, _classes_of(images), 'labelme json', notes) if images else None


def _labelme_shapes(shape: dict, file: str, notes: list[str]) -> list[Shape]:
    name, points, kind = str(shape['label']), shape['points'], shape.get('shape_type') or 'polygon'
    if kind == 'polygon' and len(points) > 2:
        return [Shape(name, [[float(number) for point in points for number in point]])]
    if kind == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = map(min, zip(*points)), map(max, zip(*points))
        return [Shape(name, [box(left, top, right - left, bottom - top)], True)]
    if kind == 'circle' and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = ((x - edge_x) ** 2 + (y - edge_y) ** 2) ** 0.5
        return [Shape(name, [ellipse(x, y, radius, radius)])]
    notes.append(f'{file}: a shape of type {kind!r} with {len(points)} points has no area and was left out')
    return []


def _read_yolo(folder: Path) -> Labels | None:
    texts = [path for path in sorted(folder.rglob('*.txt')) if 'labels' in path.relative_to(folder).parts[:-1]]
    names = _yolo_names(folder)
    if not texts or not names:
        return None
    images: list[LabelledImage] = []
    notes: list[str] = []
    for text in texts:
        parts = ['images' if part == 'labels' else part for part in text.relative_to(folder).parts]
        stem = folder.joinpath(*parts).with_suffix('')
        file = next((one for one in map(stem.with_suffix, _endings()) if one.is_file()), None)
        if file is None:
            notes.append(f'{text.relative_to(folder)}: there is no image of this name, so it was left out')
            continue
        with Image.open(file) as opened:
            size = opened.size
        image = LabelledImage(str(file), [], split_of(text))
        for number, line in enumerate(text.read_text().splitlines(), 1):
            image.shapes += _yolo_shapes(line.split(), names, size, f'{text.name}, line {number}', notes)
        images.append(image)
    if {image.split for image in images} != {'train', 'val'}:
        for image in images:
            image.split = None
    return Labels(images, names, 'YOLO', notes)


def _endings() -> list[str]:
    return [*EXTENSIONS, *(one.upper() for one in EXTENSIONS)]


def _yolo_names(folder: Path) -> list[str]:
    for path in [*sorted(folder.glob('*.yaml')), *sorted(folder.glob('*.yml'))]:
        content = yaml.safe_load(path.read_text())
        names = content.get('names') if isinstance(content, dict) else None
        if names:
            return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else list(map(str, names))
    text = folder / 'classes.txt'
    return [line.strip() for line in text.read_text().splitlines() if line.strip()] if text.is_file() else []


def _yolo_shapes(
    words: list[str], names: list[str], size: tuple[int, int], place: str, notes: list[str]
) -> list[Shape]:
    if not words:
        return []
    try:
        label, numbers = int(words[0]), list(map(float, words[1:]))
    except ValueError:
        raise UserError(f'{place}: expected a class number and positions, got {" ".join(words)[:60]!r}') from None
    if not 0 <= label < len(names):
        raise UserError(f'{place}: class {label}, but only {len(names)} class names are given: {", ".join(names)}')
    width, height = size
    if len(numbers) in (4, 5):  # a confidence may follow
        x, y, w, h = numbers[:4]
        return [Shape(names[label], [box((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)], True)]
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        outline = [number * (width, height)[index % 2] for index, number in enumerate(numbers)]
        return [Shape(names[label], [outline])]
    notes.append(f'{place}: {len(numbers)} numbers are neither a box nor a polygon')
    return []


def _classes_of(images: list[LabelledImage]) -> list[str]:
    return sorted({shape.name for image in images for shape in image.shapes})
