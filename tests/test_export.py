"""What ``tools/export.py`` writes computes, in the program that reads it, what the trained model computes here."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_models import NARROW

from mmconvnextv2.checkpoint import check_weights
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.export import parse_args
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.export.graphs import BackboneGraph, Exported
from mmconvnextv2.export.pixels import CellAverage
from mmconvnextv2.export.runtimes import FileOptions, export_program, require
from mmconvnextv2.utils.config import import_scope

needs_onnx = pytest.mark.skipif(
    not find_spec('onnxruntime') or not find_spec('onnxscript'),
    reason='needs onnx, onnxruntime and onnxscript: make export',
)
SEGMENTOR = f"""
_base_ = 'mmconvnextv2::quickstart/upernet.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{NARROW}), init_cfg=None),
    decode_head=dict(in_channels=(4, 6, 8, 10), channels=8, norm_cfg=dict(type='SyncBN')),
    auxiliary_head=dict(in_channels=8, channels=8))
"""
CLASSIFIER = f"""
_base_ = 'mmconvnextv2::classification/convnextv2-a_fcmae-ft_in1k-224.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{NARROW}), init_cfg=None), head=dict(in_channels=10, num_classes=7))
"""
SIZES = ((2, 96, 128), (1, 75, 109))


def randomise(model, seed=0):
    """Draw parameters and running statistics, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and name not in ('data_preprocessor.mean', 'data_preprocessor.std'):
            drawn = torch.randn(value.shape, generator=generator) * 0.3
            value.data = drawn.abs() + 0.5 if 'running_var' in name else drawn + name.endswith('norm.weight')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return a function: the config file, a checkpoint of it as training writes it, and the model, of a kind."""
    from mmconvnextv2 import read_config

    folder, made = tmp_path_factory.mktemp('trained'), {}

    def make(kind):
        if kind not in made:
            config, checkpoint = folder / f'{kind}.py', folder / f'{kind}.pth'
            config.write_text(dict(segmentor=SEGMENTOR, classifier=CLASSIFIER)[kind])
            cfg = read_config(str(config))
            import_scope(cfg)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = Config(dict(model=cfg.model)).model
                model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
                model = MODELS.build(model).eval()
            randomise(model)
            torch.save(
                dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('tree', 'sea')))), checkpoint
            )
            made[kind] = str(config), str(checkpoint), model
        return made[kind]

    return make


@pytest.fixture
def export(tmp_path):
    """Run the tool, ``out`` behind what it reads, and return the path written."""

    def run(command, *arguments, out='out'):
        count = 2 if command in ('onnx', 'program') else 1
        args = parse_args([command, *arguments[:count], str(tmp_path / out), *arguments[count:]])
        args.run(args)
        return str(tmp_path / out)

    return run


def draw_pixels(batch, height, width):
    return torch.randint(256, (batch, 3, height, width), generator=torch.Generator().manual_seed(height)).float()


@torch.no_grad()
def trained_outputs(model, pixels, part):
    """The model behind its own data preprocessor, its fused blocks and its own resizing."""
    inputs = (pixels - model.data_preprocessor.mean) / model.data_preprocessor.std  # both RGB
    if part == 'backbone':
        return model.backbone(inputs)
    if part == 'classifier':
        return (model(inputs, mode='tensor'),)
    size = pixels.shape[2:]
    return (model.inference(inputs, [dict(ori_shape=size, img_shape=size, pad_shape=size)] * len(pixels)),)


def assert_close(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert one.dtype == torch.float32 and one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@needs_onnx
@pytest.mark.parametrize('part, half', [('backbone', False), ('segmentor', False), ('segmentor', True)])
def test_onnx_file(trained, export, part, half):
    """One file serves images of any size and batch in onnxruntime, and states what a reader must know."""
    import onnxruntime

    config, checkpoint, model = trained('segmentor')
    path = export('onnx', config, checkpoint, '--part', part, *['--half'] * half, out='model.onnx')
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for shape in SIZES:
        pixels = draw_pixels(*shape)
        found = [torch.from_numpy(one) for one in session.run(None, dict(images=pixels.numpy()))]
        assert_close(found, trained_outputs(model, pixels, part), 3e-2 if half else 1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['classes']) == ['tree', 'sea'] and facts['config'] == 'segmentor.py'
    assert facts['precision'] == ('float16' if half else 'float32') and 'RGB' in facts['input']


@pytest.mark.parametrize('kind, half', [('segmentor', False), ('classifier', True)])
def test_program(trained, export, kind, half):
    """A program for ``torch.export.load`` computes the model at any size and batch."""
    config, checkpoint, model = trained(kind)
    path = export('program', config, checkpoint, *['--half'] * half, out='model.pt2')
    program = torch.export.load(path).module()
    for shape in SIZES:
        pixels = draw_pixels(*shape)
        assert_close(program(pixels), trained_outputs(model, pixels, kind), 3e-2 if half else 1e-4)


def test_half_precision_keeps_large_norms(make_backbone):
    """GRN's sums of squares that float16 cannot hold are right in a float16 graph."""
    model = make_backbone().float().eval()
    with torch.no_grad():
        for block in model.stages.children():
            block[0].pointwise_conv1.weight *= 100
            block[0].pointwise_conv2.weight /= 100
    seen = []
    handle = model.stages[0][0].grn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pixels = draw_pixels(1, 128, 128)
    graph, exact = (BackboneGraph(model, (127.0,) * 3, (60.0,) * 3, half) for half in (True, False))
    with torch.no_grad():
        exact(pixels)
        found, wanted = graph(pixels), exact(pixels)
    handle.remove()
    assert seen[0].square().sum(1).max() > torch.finfo(torch.float16).max
    assert_close(found, wanted, 3e-2)


def test_pooling_to_cells():
    """The product that replaces adaptive pooling equals adaptive pooling, where cells overlap too."""
    for size in ((6, 6), (7, 5), (1, 13), (12, 2)):
        features = torch.randn(2, 3, *size)
        for cells in (1, 2, 3, 6):
            wanted = torch.nn.functional.adaptive_avg_pool2d(features, cells)
            torch.testing.assert_close(CellAverage(cells)(features), wanted)


def test_wrong_file_is_not_written(make_backbone, tmp_path):
    """A file whose outputs differ from the model's never takes its name."""
    graph, other = (BackboneGraph(make_backbone().float(), (127.0,) * 3, (60.0,) * 3) for _ in range(2))
    with torch.no_grad():
        other.model.norm3.weight *= 1.01
    with pytest.raises(ValueError, match='nothing was written'):
        export_program(Exported(graph, other, {}), str(tmp_path / 'model.pt2'), FileOptions((64, 96)))
    assert not list(tmp_path.iterdir())


def test_hugging_face_folder(trained, export):
    """transformers loads the folder by itself: logits, class names and the image processor are the model's."""
    transformers = pytest.importorskip('transformers')
    config, checkpoint, model = trained('classifier')
    folder = export('huggingface', checkpoint, '--config', config)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert_close([loaded(images).logits], [model(images, mode='tensor')], 1e-4)
    assert loaded.config.id2label[6] == 'LABEL_6'  # the file names two classes of seven
    assert [value * 255 for value in processor.image_mean] == pytest.approx(model.data_preprocessor.mean.flatten())


def test_timm_file_and_card(trained, export, tmp_path):
    """timm creates the model from the file with the call that its card shows, and the card says what was given."""
    pytest.importorskip('timm')
    config, checkpoint, model = trained('classifier')
    path = export(
        'timm', checkpoint, '--config', config, '--license', 'mit', '--metrics', 'top-1=77.5', out='model.safetensors'
    )
    card = (tmp_path / 'model.md').read_text()
    code = card.split('```python\n')[1].split('```')[0]
    names = {}
    exec(code, names)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_close([names['model'].eval()(images)], [model(images, mode='tensor')], 1e-4)
    assert 'license: mit' in card and '| top-1 | 77.5 |' in card and 'classifier.py' in card and path in code


def test_safetensors_folder(trained, export):
    """The folder's weights are the checkpoint's bits, and load into the config's model."""
    config, checkpoint, model = trained('segmentor')
    folder = export('safetensors', checkpoint, '--config', config)
    weights = load_file(f'{folder}/model.safetensors')
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('data_preprocessor')}
    assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
    check_weights(model, weights, folder)


def test_part_of_a_detector(export, tmp_path):
    """``--part backbone`` exports a detector's backbone; the part of another scope is refused."""
    release = Path(__file__).parent / 'test_release_0_1' / 'files' / 'mask-rcnn'
    config, checkpoint = str(release / 'config.py'), str(release / 'epoch_1.pth')
    with pytest.raises(ValueError, match='--part segmentor exports models of mmseg, .* MaskRCNN of mmdet'):
        export('program', config, checkpoint, '--part', 'segmentor', out='detector.pt2')
    assert not (tmp_path / 'detector.pt2').exists()
    export('program', config, checkpoint, '--part', 'backbone', out='backbone.pt2')


def test_mistakes_are_one_sentence(trained, export, tmp_path):
    """What cannot be exported is refused with what to do, before anything is written."""
    config, checkpoint, _ = trained('segmentor')
    (tmp_path / 'there.pt2').write_text('')
    for arguments, message in (
        (('program', config, checkpoint, '--part', 'classifier'), '--part backbone'),
        (('program', config, checkpoint, '--size', '32', '64'), 'at least 64 pixels'),
        (('program', config, config), 'checkpoint'),
        (('program', trained('classifier')[0], checkpoint), 'weights'),
    ):
        with pytest.raises(ValueError, match=message):
            export(*arguments, out='new.pt2')
    there = parse_args(['program', config, checkpoint, str(tmp_path / 'there.pt2')])
    with pytest.raises(SystemExit, match='^error: .*there.pt2 exists: choose another name, .* --force$'):
        run_tool(there.run, there)
    with pytest.raises(ValueError, match=r'nothing_such not installed: pip install "mmconvnextv2\[export\]"'):
        require('torch', 'nothing_such')
    assert [path.name for path in tmp_path.iterdir()] == ['there.pt2']
