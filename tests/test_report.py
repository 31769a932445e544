"""A report holds everything in one file and shows what a run logged."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.analysis.html import Report, read_curve, read_metric


def test_report_is_self_contained(tmp_path):
    """Images come back bit for bit from the page, text is escaped, and nothing points to a network."""
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / 'image.png')
    report = Report('A & B')
    report.table(['metric'], [['<41.2>']])
    report.image(tmp_path / 'image.png', 'caption')
    report.thumbnails([tmp_path / 'image.png'] * 2, 'two')
    report.curves({'run': ([1, 2], [3.0, 4.0])}, 'loss')
    report.write(tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    assert 'A &amp; B' in page and '&lt;41.2&gt;' in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4 and all(source.startswith('data:image/png;base64,') for source in sources)
    image = (tmp_path / 'image.png').read_bytes()
    assert all(base64.b64decode(source.split(',')[1]) == image for source in sources[:3])
    assert not re.search(r'https?://|<script|<link', page)


def test_reads_what_mmengine_logs(tmp_path):
    """Curves are the logged losses in order, a metric is the last one, and a missing metric is named."""
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [
        dict(loss=2.0, iter=5, step=5),
        dict(mIoU=10.0, step=5),
        dict(loss=1.0, iter=10, step=10),
        dict(mIoU=20.0, step=10),
    ]
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(line) for line in lines) + '\n{"loss": 0.')
    assert read_curve(tmp_path) == ([5, 10], [2.0, 1.0])
    assert read_metric(tmp_path, 'mIoU') == 20.0
    with pytest.raises(ValueError, match='AP'):
        read_metric(tmp_path, 'AP')
