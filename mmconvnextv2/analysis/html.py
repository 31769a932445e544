"""Self-contained HTML reports of training runs, which open from disk and load nothing from the network."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from ..utils.atomic import replacing
from ..utils.errors import UserError

# Columns of the images that FCMAE's ReconstructionHook writes
RECONSTRUCTION_COLUMNS = (
    'original | masked | reconstruction, with the true mean and deviation of each masked cell | pasted together | '
    'unaided, with mean and deviation from visible cells'
)
STYLE = """:root{color-scheme:light dark;--ink:#222;--paper:#fff;--line:#ccc;--shade:#f4f4f4;--faint:#666}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#181818;--line:#444;--shade:#252525;--faint:#999}}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--paper)}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid var(--line);padding:.3rem .8rem;text-align:left}
th{background:var(--shade)}img{max-width:100%;margin:.3rem 0}
pre{background:var(--shade);padding:.8rem;overflow-x:auto;white-space:pre-wrap}
figure{margin:1rem 0}figcaption{color:var(--faint);font-size:.9rem}
summary{font-size:1.5rem;font-weight:bold;cursor:pointer}
.small{display:grid;grid-template-columns:1fr 1fr;gap:.8rem}.small figure{margin:0}
.small img{width:100%;image-rendering:pixelated}"""


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Return the log entries of the newest run in ``work_dir``, in order; empty if there are none."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        return []
    return parse_scalars(files[-1].read_text(errors='replace'))


def parse_scalars(text: str) -> list[dict]:
    """Return the numbers in mmengine's ``scalars.json``, one dict per entry; lines cut off by a kill are skipped."""
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append({name: value for name, value in entry.items() if isinstance(value, (int, float))})
    return entries


def read_curve(work_dir: str | Path, key: str = 'loss') -> tuple[list[int], list[float]]:
    """Return (steps, values) of a logged scalar."""
    points = [(entry.get('iter', entry.get('step', 0)), entry[key]) for entry in read_scalars(work_dir) if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def read_metric(work_dir: str | Path, key: str) -> float:
    """Return the last value of an evaluator's metric.

    Raises:
        ValueError: If the run never logged the metric.
    """
    values = [entry[key] for entry in read_scalars(work_dir) if key in entry]
    if not values:
        raise UserError(f'the run in {work_dir} did not log {key!r}: did its evaluation finish?')
    return values[-1]


def _inline(image: str | Path | bytes | np.ndarray, text: str) -> str:
    """Return an ``img`` element with a PNG or JPEG embedded in it; an array, RGB, becomes a JPEG."""
    if isinstance(image, np.ndarray):
        content = cv2.imencode('.jpg', image[..., ::-1])[1].tobytes()
    else:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    kind = 'png' if content.startswith(b'\x89PNG') else 'jpeg'
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


class Report:
    """HTML page that collects sections and writes them to one file.

    Args:
        title (str): Heading of the page.

    Examples:
        >>> report = Report('My run')
        >>> report.table(['metric', 'value'], [['mIoU', 41.2]])
        >>> report.write('report.html')
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts = [f'<h1>{escape(title)}</h1>']

    def heading(self, text: str) -> None:
        """Start a section."""
        self.parts.append(f'<h2>{escape(text)}</h2>')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(f'<p>{escape(text)}</p>')

    def code(self, text: str) -> None:
        """Add preformatted text."""
        self.parts.append(f'<pre>{escape(text)}</pre>')

    def folded(self, title: str, text: str) -> None:
        """Add preformatted text that unfolds on a click."""
        self.parts.append(f'<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>')

    def table(self, header: Sequence, rows: Sequence[Sequence]) -> None:
        """Add a table."""
        lines = [''.join(f'<th>{escape(str(cell))}</th>' for cell in header)]
        lines += [''.join(f'<td>{escape(str(cell))}</td>' for cell in row) for row in rows]
        self.parts.append('<table>' + ''.join(f'<tr>{line}</tr>' for line in lines) + '</table>')

    def image(self, image: str | Path | bytes | np.ndarray, caption: str) -> None:
        """Embed a PNG or JPEG, given as a path or as bytes, or an RGB image (H, W, 3)."""
        self.parts.append(f'<figure>{_inline(image, caption)}<figcaption>{escape(caption)}</figcaption></figure>')

    def thumbnails(
        self, images: Sequence[str | Path | np.ndarray], caption: str, captions: Sequence[str] | None = None
    ) -> None:
        """Add small images, enlarged, two per row.

        Args:
            images (Sequence[str | Path | np.ndarray]): PNG or JPEG files, or RGB images (H, W, 3).
            caption (str): Text below all of them.
            captions (Sequence[str], optional): Text below each. Defaults to None, none.
        """
        cells = [
            f'<figure>{_inline(image, text or caption)}<figcaption>{escape(text)}</figcaption></figure>'
            for image, text in zip(images, captions or [''] * len(images))
        ]
        self.parts.append(
            f'<figure><div class="small">{"".join(cells)}</div><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def curves(
        self,
        curves: dict[str, tuple[Sequence, Sequence]],
        caption: str,
        ylabel: str = 'loss',
        xlabel: str = 'iteration',
        best: str | None = None,
    ) -> None:
        """Plot named (steps, values) curves in one figure, the legend next to it; do nothing without curves.

        Args:
            curves (dict): Steps and values by name.
            caption (str): Text below the figure.
            ylabel (str): Label of the values. Defaults to ``'loss'``.
            xlabel (str): Label of the steps. Defaults to ``'iteration'``.
            best (str, optional): ``'max'`` or ``'min'`` marks the best value of each curve. Defaults to None.
        """
        if not curves:
            return
        figure = Figure(figsize=(8, 3.2), layout='constrained')
        axes = figure.subplots()
        for name, (steps, values) in curves.items():
            (line,) = axes.plot(steps, values, label=name.replace('$', r'\$'))  # $ starts a formula in matplotlib
            if best is not None:
                index = (max if best == 'max' else min)(range(len(values)), key=values.__getitem__)
                axes.plot(steps[index], values[index], 'o', color=line.get_color())
                text = f'{values[index]:.4g} at {xlabel} {steps[index]}'
                at_right = steps[index] > (steps[0] + steps[-1]) / 2  # the text stays inside the axes
                axes.annotate(
                    text,
                    (steps[index], values[index]),
                    xytext=(-8 if at_right else 8, -12),
                    textcoords='offset points',
                    ha='right' if at_right else 'left',
                )
        axes.set(xlabel=xlabel, ylabel=ylabel.replace('$', r'\$'))
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5))
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=110)
        self.image(buffer.getvalue(), caption)

    def write(self, path: str | Path) -> None:
        """Write the file, completely or not at all."""
        with replacing(str(path)) as partial:
            head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{STYLE}</style>'
            page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(self.parts)}</body></html>'
            Path(partial).write_bytes(page.encode(errors='replace'))  # file names may not be valid UTF-8
