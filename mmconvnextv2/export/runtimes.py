"""ONNX files and ``torch.export`` programs, each compared with PyTorch before the target is replaced.

Batch, height and width are free in both, unless a model or an option fixes them. A file gets its final name only after
its outputs match the model's, at two sizes and two batch sizes where these are free.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.atomic import replacing_files
from ..utils.errors import UserError
from .graphs import Exported

TRACED = (2, 1.5, 2)  # batch of the example, height and width in smallest sides; distinct, so dims are not merged
OPSET = 18
OPSETS = (18, 19, 20, 21, 22, 23)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2}  # as a fraction of the largest float32 output
INT8_TOLERANCE = 0.5
EXPORT_ERRORS = (
    torch.onnx.OnnxExporterError,
    torch._dynamo.exc.Unsupported,
    torch._dynamo.exc.UserError,
    torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode,
)
Runner = Callable[[Tensor], Sequence[Tensor]]


class FileOptions(NamedTuple):
    """How a file is written.

    Args:
        size (tuple[int, int]): Height and width of the first check, and of the input if it is fixed, in pixels.
            Defaults to (224, 288).
        fixed (bool): Fix batch (1) and size. Defaults to False: both are free where the model can be exported so.
        opset (int): Version of ONNX's operators. Defaults to 18.
        int8 (bool): Quantise weights of matrix products to int8, and their inputs when they are computed. Defaults to
            False.
    """

    size: tuple[int, int] = (224, 288)
    fixed: bool = False
    opset: int = OPSET
    int8: bool = False


def require(*packages: str) -> None:
    """Raise ``ValueError`` with the install command if packages are missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed: pip install "mmconvnextv2[export]"')


def export_onnx(exported: Exported, target: str, options: FileOptions = FileOptions()) -> list[str]:
    """Write an ONNX model with the facts as metadata, as one file unless its weights exceed 1.5 GB.

    Args:
        exported (Exported): See :func:`mmconvnextv2.export.graphs.read_graph`.
        target (str): File to write; the weights of a large model go into a ``.data`` file next to it.
        options (FileOptions): How. Defaults to any batch and size.

    Returns:
        list[str]: What is fixed, and one line per check.

    Raises:
        ValueError: If a package is missing, the model cannot be exported, or outputs differ too much.
    """
    require('onnx', 'onnxruntime', 'onnxscript')
    if options.opset not in OPSETS:
        raise UserError(f'--opset {options.opset} is unknown: choose one of {", ".join(map(str, OPSETS))}')
    if options.int8 and exported.graph.dtype == torch.float16:
        raise UserError('--int8 with --half: choose one of them')
    with replacing_files(target) as partial, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write = _write_traced if exported.graph.traced else _write
        fixed = write(exported, partial, options)
        facts = {**exported.facts, 'size': _describe_size(fixed)}
        if options.int8:
            quantise(partial)
            facts['precision'] = 'int8 matrix products, else float32'
        _describe(partial, facts)
        found = list(compare(exported, _onnx_runner(partial), options, fixed))
    return [f'input: {facts["size"]}', *found]


def _write(exported: Exported, path: str, options: FileOptions) -> tuple[int, int, int] | None:
    """Write an ONNX file by way of ``torch.export``; return batch, height and width if they are fixed."""
    from .suppression_onnx import TRANSLATIONS

    program, fixed = trace(exported, options)
    written = _or_refuse(
        lambda: torch.onnx.export(
            program,
            dynamo=True,
            opset_version=options.opset,
            verbose=False,
            input_names=['images'],
            output_names=list(exported.graph.output_names),
            dynamic_shapes=None if fixed else ({0: 'batch', 2: 'height', 3: 'width'},),
            custom_translation_table=TRANSLATIONS,
            optimize=False,
        )
    )
    _simplify(written.model)
    written.save(path)
    return fixed


def _write_traced(exported: Exported, path: str, options: FileOptions) -> tuple[int, int, int]:
    """Write an ONNX file by way of torch's older tracer, for one image; return batch, height and width.

    Raises:
        ValueError: If a side is not a multiple of 32 pixels.
    """
    if any(side % 32 for side in options.size):
        raise UserError(f'--size {" ".join(map(str, options.size))}: this model needs multiples of 32 pixels')
    shape = (1, *options.size)
    _or_refuse(
        lambda: torch.onnx.export(
            exported.graph,
            (exported.graph.draw_images(shape),),
            path,
            dynamo=False,
            opset_version=min(options.opset, 20),
            input_names=['images'],
            output_names=list(exported.graph.output_names),
        )
    )
    return shape


def _describe(path: str, facts: dict[str, Any]) -> None:
    """Write facts into the metadata of an ONNX file; weights beside it stay where they are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {name: _as_text(fact) for name, fact in facts.items()})
    onnx.save(model, path)


def export_program(exported: Exported, target: str, options: FileOptions = FileOptions()) -> list[str]:
    """Write a program for ``torch.export.load``, with the facts as its extra file ``facts.json``; see
    :func:`export_onnx`."""
    with replacing_files(target) as partial:
        program, fixed = trace(exported, options)
        facts = {**exported.facts, 'size': _describe_size(fixed)}
        torch.export.save(program, partial, extra_files={'facts.json': json.dumps(facts)})
        found = list(compare(exported, torch.export.load(partial).module(), options, fixed))
    return [f'input: {facts["size"]}', *found]


def trace(exported: Exported, options: FileOptions) -> tuple[torch.export.ExportedProgram, tuple[int, int, int] | None]:
    """Return a graph as ``torch.export`` sees it, and its batch, height and width if they are fixed.

    Raises:
        ValueError: If torch cannot export it.
    """
    graph, free = exported.graph, torch.export.Dim.DYNAMIC
    if graph.traced:
        raise UserError(f'torch {torch.__version__} cannot export this model as a program: choose onnx')
    is_fixed = options.fixed or not graph.any_size
    shape = (1, *options.size) if is_fixed else (TRACED[0], *(int(side * graph.smallest) for side in TRACED[1:]))
    images = graph.draw_images(shape)
    fixed = shape if is_fixed else None
    dynamic = None if fixed else ({0: free, 2: free, 3: free},)
    with torch.no_grad():
        program = _or_refuse(lambda: torch.export.export(graph, (images,), dynamic_shapes=dynamic, strict=False))
    return program, fixed


def _simplify(model: Any) -> None:
    """Fold constants and remove what is unused, in place; onnxscript's other rewriting takes longer than the export."""
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _describe_size(fixed: tuple[int, int, int] | None) -> str:
    return 'any batch, height and width' if fixed is None else f'fixed: {" x ".join(map(str, fixed))} pixels'


def quantise(path: str) -> None:
    """Quantise the weights of matrix products in a file to int8, per output channel; their inputs, when computed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preprocessing step that the exporter has done
    try:
        quantize_dynamic(
            path, path, op_types_to_quantize=['MatMul', 'Gemm'], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        root.setLevel(level)


def compare(
    exported: Exported, run: Runner, options: FileOptions, fixed: tuple[int, int, int] | None = None
) -> Iterator[str]:
    """Compare a written file with the float32 model, at the given size and at a smaller, odd one; yield one line each.

    Raises:
        ValueError: If the largest difference exceeds ``TOLERANCE``, or is NaN; for detectors, if detections do.
    """
    graph, (height, width) = exported.reference, (max(side, exported.graph.smallest) for side in options.size)
    limit = INT8_TOLERANCE if options.int8 else TOLERANCE[exported.graph.dtype]
    smaller = (1, max(width // 2, graph.smallest) + 5, max(height // 2, graph.smallest) + 13)
    for shape in (fixed,) if fixed else ((2, height, width), smaller):
        images = graph.draw_images(shape)
        with torch.no_grad():
            expected, found = graph(images), run(images)
        what = f'{" x ".join(map(str, shape))} pixels'
        try:
            yield f'{what}: {graph.difference(expected, found, limit)}'
        except UserError as error:
            raise UserError(
                f'outputs for {what} {error}: nothing was written'
                + ('; try without --half' if exported.graph.dtype == torch.float16 else '')
            ) from None


def _or_refuse(export: Callable[[], Any]) -> Any:
    said = io.StringIO()  # torch prints the whole graph beside an error
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return export()
    except EXPORT_ERRORS as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f'torch {torch.__version__} cannot export this model: {reason}') from error


def _onnx_runner(path: str) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: list(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))


def _as_text(fact: object) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact)
