"""ONNX files and ``torch.export`` programs, each compared with PyTorch before the target is replaced.

Batch, height and width are dynamic in both. A file gets its final name only after its outputs match the model's, at two
sizes and two batch sizes.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..checkpoint.cross_check import relative_difference
from ..utils.atomic import replacing_files
from ..utils.errors import UserError
from .graphs import SMALLEST, Exported, PixelGraph

TRACED = (2, 96, 128)  # batch, height and width of the example; distinct, so symbolic dims are not merged
OPSET = 18
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}  # as a fraction of the largest float32 output
Runner = Callable[[Tensor], Sequence[Tensor]]


def require(*packages: str) -> None:
    """Raise ``ValueError`` with the install command if packages are missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed: pip install "mmconvnextv2[export]"')


def export_onnx(exported: Exported, target: str, size: tuple[int, int]) -> list[str]:
    """Write an ONNX model with the facts as metadata, as one file unless its weights exceed 1.5 GB.

    Args:
        exported (Exported): See :func:`mmconvnextv2.export.graphs.read_graph`.
        target (str): File to write; the weights of a large model go into a ``.data`` file next to it.
        size (tuple[int, int]): Height and width of the first check, in pixels.

    Returns:
        list[str]: One line per check.

    Raises:
        ValueError: If a package is missing, the model cannot be exported, or outputs differ too much.
    """
    require('onnx', 'onnxruntime', 'onnxscript')
    with replacing_files(target) as partial, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = _traced(
            lambda images: torch.onnx.export(
                exported.graph,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=['images'],
                output_names=list(exported.graph.output_names),
                dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
            ),
            exported.graph,
        )
        program.model.metadata_props.update({name: _as_text(fact) for name, fact in exported.facts.items()})
        program.save(partial)
        return list(compare(exported, _onnx_runner(partial), size))


def export_program(exported: Exported, target: str, size: tuple[int, int]) -> list[str]:
    """Write a program for ``torch.export.load``, with the facts as its extra file ``facts.json``; see
    :func:`export_onnx`."""
    free = torch.export.Dim.DYNAMIC
    with replacing_files(target) as partial:
        program = _traced(
            lambda images: torch.export.export(
                exported.graph, (images,), dynamic_shapes=({0: free, 2: free, 3: free},)
            ),
            exported.graph,
        )
        torch.export.save(program, partial, extra_files={'facts.json': json.dumps(exported.facts)})
        return list(compare(exported, torch.export.load(partial).module(), size))


def compare(exported: Exported, run: Runner, size: tuple[int, int]) -> Iterator[str]:
    """Compare a written file with the float32 model, at the given size and at a smaller, odd one; yield one line each.

    Raises:
        ValueError: If the largest difference exceeds ``TOLERANCE``, or is NaN.
    """
    graph, limit = exported.reference, TOLERANCE[exported.graph.dtype]
    for batch, height, width in ((2, *size), (1, max(size[1] // 2, SMALLEST) + 5, max(size[0] // 2, SMALLEST) + 13)):
        images = (
            torch.rand(batch, graph.backbone.in_channels, height, width, generator=torch.Generator().manual_seed(0))
            * 255
        )
        with torch.no_grad():
            pairs = list(zip(graph(images), run(images), strict=True))
        differences = [relative_difference(expected, found) for expected, found in pairs]
        worst = max(differences, key=lambda one: (one != one, one))  # NaN counts as the largest
        if not worst <= limit:
            raise UserError(
                f"outputs for {batch}x{height}x{width} pixels differ from PyTorch's by {worst:.1e} of "
                f'the largest value, allowed are {limit:.0e}: nothing was written'
                + ('; try without --half' if exported.graph.dtype == torch.float16 else '')
            )
        yield f'{batch} x {height} x {width} pixels: differs from PyTorch by {worst:.1e} of the largest value'


def _traced(export: Callable[[Tensor], object], graph: PixelGraph) -> object:
    batch, height, width = TRACED
    try:
        return export(torch.rand(batch, graph.backbone.in_channels, height, width) * 255)
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.Unsupported) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f'torch {torch.__version__} cannot export this model: {reason}') from error


def _onnx_runner(path: str) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: list(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))


def _as_text(fact: object) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact)
