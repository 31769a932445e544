"""Labels of the photograph of coins on the start page: ``python benchmarks/few_images/coins.py PHOTO OUT``.

PHOTO is coins.png of scikit-image (Greek coins, Brooklyn Museum, no known copyright restrictions). Coins are brighter
than the cloth, so a threshold gives their masks. OUT/export gets overlapping crops of the left half with the coins
inside, as COCO json; OUT/held_out the right half, which no crop shows.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

SIDE = 128  # pixels of a crop
STEP = 22
LEAST_AREA = 400  # square pixels of a coin
LEAST_SHARE = 0.3  # of a coin, inside a crop


def coin_masks(grey: np.ndarray) -> list[np.ndarray]:
    """Return the masks of the coins in a grey image, bool (H, W)."""
    local = grey.astype(int) - cv2.GaussianBlur(grey, (0, 0), 60)  # the cloth gets darker downwards
    bright = cv2.morphologyEx((local > 12).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    bright = cv2.morphologyEx(bright, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    masks = []
    for outline in outlines:
        if cv2.contourArea(outline) > LEAST_AREA:
            filled = np.zeros_like(grey)
            cv2.drawContours(filled, [cv2.convexHull(outline)], -1, 1, -1)
            masks.append(filled.astype(bool))
    return masks


def write_export(
    image: np.ndarray, masks: list[np.ndarray], windows: list[tuple[int, int, int, int]], out: Path
) -> int:
    """Write windows (top, left, height, width) of an image, with the coins of which 30 % are inside, as COCO json."""
    (out / 'images').mkdir(parents=True)
    (out / 'annotations').mkdir()
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='coin')])
    for number, (top, left, height, width) in enumerate(windows, 1):
        name = f'crop_{top:03}_{left:03}.png'
        cv2.imwrite(str(out / 'images' / name), image[top : top + height, left : left + width])
        content['images'].append(dict(id=number, file_name=name, width=width, height=height))
        for mask in masks:
            inside = mask[top : top + height, left : left + width]
            if inside.sum() < LEAST_SHARE * mask.sum():
                continue
            outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=1,
                    segmentation=[one.reshape(-1).tolist() for one in outlines if len(one) > 2],
                    bbox=[int(value) for value in cv2.boundingRect(np.concatenate(outlines))],
                    area=int(inside.sum()),
                    iscrowd=0,
                )
            )
    (out / 'annotations/instances_default.json').write_text(json.dumps(content))
    return len(content['annotations'])


def main(photo: str, out: Path) -> None:
    """Write both exports."""
    image = cv2.imread(photo)
    height, width = image.shape[:2]
    half = width // 2
    masks = coin_masks(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    crops = [
        (top, left, SIDE, SIDE) for top in range(0, height - SIDE + 1, STEP) for left in range(0, half - SIDE + 1, STEP)
    ]
    learnt = write_export(image, masks, crops, out / 'export')
    unseen = write_export(image, masks, [(0, half, height, width - half)], out / 'held_out')
    print(f'{len(masks)} coins; {len(crops)} crops with {learnt} objects; {unseen} in the right half')


if __name__ == '__main__':
    main(sys.argv[1], Path(sys.argv[2]))
