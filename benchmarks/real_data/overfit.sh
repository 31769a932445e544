#!/usr/bin/env bash
# Overfits Mask R-CNN and Cascade Mask R-CNN on eight images with few objects:  benchmarks/real_data/overfit.sh DATA
# DATA contains tiny_coco/ (COCO layout).
set -euo pipefail
data=$(cd "${1:?usage: benchmarks/real_data/overfit.sh DATA}/tiny_coco" && pwd)
out=work_dirs/real_data/overfit
python=${PYTHON:-.venv/bin/python}
mkdir -p $out
ln -sfn "$data/train2017" $out/images
"$python" - "$data/annotations/instances_train2017.json" $out/eight.json <<'END'
import json
import sys
from collections import Counter
with open(sys.argv[1]) as file:
    everything = json.load(file)
objects = [one for one in everything['annotations'] if not one['iscrowd']]
count = Counter(one['image_id'] for one in objects)
chosen = [image for image in sorted(count) if count[image] <= 5][:8]
everything['images'] = [image for image in everything['images'] if image['id'] in chosen]
everything['annotations'] = [one for one in objects if one['image_id'] in chosen]
with open(sys.argv[2], 'w') as file:
    json.dump(everything, file)
print(f"8 images, {len(everything['annotations'])} objects")
END
for detector in mask-rcnn cascade; do
    "$python" tools/train.py benchmarks/real_data/overfit_$detector.py --work-dir $out/$detector
done
