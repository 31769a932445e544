"""Converted weights give the outputs of the foreign libraries, and of the official sparse files, here too."""

import sys
from importlib import metadata

import pytest
import torch
from small_models import NARROW, V1, settings_of
from sparse_reference import official_sparse_file, sparse_reference
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import extract_state_dict, from_canonical, load_backbone, read_backbone, to_canonical
from mmconvnextv2.checkpoint.convert import LAYOUTS, TOLERANCE, check_conversion, convert_file
from mmconvnextv2.checkpoint.cross_check import Outputs, relative_difference, run
from mmconvnextv2.checkpoint.layouts import CLASSIFIERS
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.utils.compat import name_and_version


def make(arch=NARROW, **kwargs):
    """A backbone with trained-looking weights: GRN, norms and biases are random too."""
    torch.manual_seed(0)
    model = ConvNeXtV2(arch, out_indices=(3,), **kwargs)
    for name, parameter in model.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, std=fan**-0.5)
        if name.endswith('norm.weight') or name == 'norm3.weight':
            parameter.data += 1
    return model.eval()


def expect(model, images):
    """The last map, and the normalised mean over it, without the code under test."""
    with torch.no_grad():
        normalised = model(images)[0]
        model.out_norm, model.gap_before_final_norm = False, False
        last_map = model(images)[0]
        model.out_norm = model.gap_before_final_norm = True
        pooled = model(images)[0]
        model.gap_before_final_norm = False
    return last_map, pooled, normalised


@pytest.mark.parametrize('layout', ['canonical', 'timm', 'timm-conv', 'huggingface', 'huggingface-backbone'])
@pytest.mark.parametrize('arch', [NARROW, 'atto', 'tiny'], ids=str)
def test_outputs_equal_the_librarys(arch, layout):
    """With random weights, GRN's among them, the last map and the pooled features of mmpretrain's ConvNeXt, timm's
    convnextv2 and Hugging Face's ConvNextV2Model equal ours to 1e-5."""
    package = dict(canonical='mmpretrain', huggingface='transformers').get(layout.partition('-')[0], 'timm')
    pytest.importorskip(package)
    model, images = make(arch), torch.randn(2, 3, 64, 96)
    last_map, pooled, _ = expect(model, images)
    theirs = run(from_canonical(model.state_dict(), layout), images)
    assert theirs.library == name_and_version(package)
    torch.testing.assert_close(theirs.last_map, last_map, rtol=1e-5, atol=1e-5 * last_map.abs().max().item())
    if layout != 'huggingface-backbone':
        torch.testing.assert_close(theirs.pooled, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['convnextv2_atto', 'convnextv2_tiny'])
@pytest.mark.parametrize('features_only', [False, True])
def test_random_models_of_timm_come_in(name, features_only):
    """The weights of timm's own model, whole or features_only, make our maps equal its."""
    timm = pytest.importorskip('timm')
    theirs = timm.create_model(name, features_only=features_only).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.ndim > 1 else 4) ** -0.5)
    found = read_backbone(theirs.state_dict())
    ours = ConvNeXtV2(name[len('convnextv2_') :], out_indices=(0, 1, 2, 3), out_norm=False).eval()
    ours.load_state_dict({key: value for key, value in found.weights.items() if not key.startswith('norm')})
    assert found.dropped == ([] if features_only else ['head.fc.weight', 'head.fc.bias'])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = theirs(images) if features_only else theirs.forward_intermediates(images, intermediates_only=True)
        for one, other in zip(ours(images), maps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_random_models_of_hugging_face_come_in():
    """The weights of ConvNextV2ForImageClassification and ConvNextV2Backbone make our outputs equal theirs; the
    backbone's norms become our output norms."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ConvNextV2Config(
        depths=list(NARROW['depths']),
        hidden_sizes=list(NARROW['channels']),
        out_features=['stem', 'stage1', 'stage2', 'stage3', 'stage4'],
        layer_norm_eps=1e-6,
    )
    images = torch.randn(2, 3, 64, 96)
    for theirs, kwargs in (
        (transformers.ConvNextV2ForImageClassification(config), dict(out_indices=(3,), gap_before_final_norm=True)),
        (transformers.ConvNextV2Backbone(config), {}),
    ):
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.3)
        found = read_backbone(theirs.state_dict())
        lost = 'classifier' if kwargs else 'hidden_states_norms.stem'
        assert found.dropped == [f'{lost}.weight', f'{lost}.bias']
        ours = ConvNeXtV2(NARROW, **kwargs).eval()
        ours.load_state_dict(found.weights)
        with torch.no_grad():
            if kwargs:
                expected = [theirs.eval().convnextv2(images).pooler_output]
            else:
                expected = theirs.eval()(images).feature_maps[1:]
            for one, other in zip(ours(images), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize('arch', ['atto', 'nano', 'tiny', 'base'])
def test_libraries_know_the_names(arch):
    """For all depths that sizes have, our files have exactly the names and shapes of Hugging Face's and mmpretrain's
    own models (narrow ones: neither can be built without its memory)."""
    transformers, mmpretrain = pytest.importorskip('transformers'), pytest.importorskip('mmpretrain.models')
    depths, channels = list(ARCHS[arch]['depths']), [4, 8, 16, 32]
    assert {tuple(size['depths']) for size in ARCHS.values()} == {
        tuple(ARCHS[name]['depths']) for name in ('atto', 'nano', 'tiny', 'base')
    }
    weights = ConvNeXtV2(dict(depths=depths, channels=channels), out_indices=(3,)).state_dict()
    hugging_face = transformers.ConvNextV2Model(transformers.ConvNextV2Config(depths=depths, hidden_sizes=channels))
    openmmlab = mmpretrain.ConvNeXt(dict(depths=depths, channels=channels), use_grn=True, layer_scale_init_value=0.0)
    for layout, theirs in (('huggingface', hugging_face), ('canonical', openmmlab)):
        ours = from_canonical(weights, layout)
        assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize('cells', [[[0, 3, 5], [1, 2, 4]], [list(range(6))] * 2], ids=['half', 'all'])
def test_a_sparse_file_becomes_the_dense_model(tmp_path, cells):
    """A sparse file made by hand, decoder included, converts to the model whose masked and packed outputs are those of
    the sparse reference, and whose dense output is that of all cells visible."""
    weights = make(out_norm=False).state_dict()
    decoder = {'proj.weight': torch.randn(512, 24, 1, 1), 'decoder.0.dwconv.weight': torch.randn(512, 1, 7, 7)}
    torch.save(dict(model={**official_sparse_file(weights), **decoder}, epoch=799), tmp_path / 'sparse.pth')
    model = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=False).eval()
    load_backbone(model, str(tmp_path / 'sparse.pth'))
    images = torch.randn(2, 3, 64, 96)
    expected = sparse_reference(weights, NARROW['depths'], images, cells)[3]
    with torch.no_grad():
        for execution in ('masked', 'packed'):
            found = model(images, torch.tensor(cells), execution)[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if len(cells[0]) == 6:
            torch.testing.assert_close(model(images)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_check_names_both_libraries(tmp_path, layout):
    """--check computes source and target each in the library of its layout, and says which."""
    source, target = str(tmp_path / 'source.pth'), str(tmp_path / 'target.safetensors')
    weights = make(out_norm=False, **settings_of(layout)).state_dict()
    torch.save(weights, source)
    convert_file(source, target, layout)
    report = check_conversion(source, target)
    assert f'same bits ({len(weights)} weights)' in report
    if layout.startswith('mmearth'):
        assert 'canonical (ConvNeXtV2: no library has its stem) and mmearth' in report
        return
    assert f'canonical ({name_and_version("mmpretrain")})' in report
    package = dict(timm='timm', huggingface='transformers', openclip='timm').get(layout.partition('-')[0])
    if layout == 'huggingface-dinov3':
        assert 'transformers' in report
    elif layout == 'dinov3':  # a backbone without its norm
        assert 'official-dense (ConvNeXtV2: it has no library to install)' in report
    elif package is None:
        assert f'{layout} (ConvNeXtV2: it has no library to install)' in report
    elif package != 'transformers' or _has_transformers():
        assert f'({name_and_version(package)})' in report
    else:
        assert 'huggingface (ConvNeXtV2: transformers cannot be imported' in report


def _has_transformers():
    try:
        return bool(metadata.version('transformers'))
    except metadata.PackageNotFoundError:
        return False


def test_an_absent_library_is_named(monkeypatch):
    """Without the library our model computes the outputs, and the answer says so."""
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.setitem(sys.modules, 'timm.models.convnext', None)
    model, images = make(), torch.randn(1, 3, 64, 64)
    outputs = run(from_canonical(model.state_dict(), 'timm'), images)
    last_map, pooled, _ = expect(model, images)
    assert isinstance(outputs, Outputs) and outputs.library.startswith('ConvNeXtV2: timm cannot be imported')
    torch.testing.assert_close(outputs.last_map, last_map)
    torch.testing.assert_close(outputs.pooled, pooled)


def test_a_transformers_with_another_grn_is_not_used(tmp_path, monkeypatch):
    """transformers 4.51 computes GRN with a matrix norm: it is named, and our model takes its place."""
    module = tmp_path / 'transformers' / 'models' / 'convnextv2' / 'modeling_convnextv2.py'
    module.parent.mkdir(parents=True)
    module.write_text('')
    (tmp_path / 'transformers-4.51.3.dist-info').mkdir()
    (tmp_path / 'transformers-4.51.3.dist-info' / 'METADATA').write_text('Name: transformers\nVersion: 4.51.3\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'transformers']:
        monkeypatch.delitem(sys.modules, name)
    try:
        outputs = run(from_canonical(make().state_dict(), 'huggingface'), torch.randn(1, 3, 64, 64))
    finally:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'transformers']:
            del sys.modules[name]
    assert outputs.library == 'ConvNeXtV2: GRN of transformers 4.51.3 takes a matrix norm, use another version'


def test_check_finds_other_outputs():
    """A change of 1e-3 in the final norm alone is far above the tolerance of the check."""
    model, images = make(), torch.randn(1, 3, 64, 64)
    one = run(model.state_dict(), images)
    other = run({**model.state_dict(), 'norm3.weight': model.norm3.weight + 1e-3}, images)
    assert relative_difference(one.pooled, other.pooled) > TOLERANCE


@pytest.mark.parametrize('layout', ['canonical', 'official-dense', 'timm-conv', 'huggingface', 'openclip', 'spark'])
def test_v1_weights_keep_layer_scale(layout):
    """ConvNeXt V1 weights, without GRN and with LayerScale, go through the layouts that know them, and the library of
    each agrees."""
    if layout == 'huggingface':
        pytest.importorskip('transformers')
    model = make(**V1)
    images = torch.randn(1, 3, 64, 64)
    weights = from_canonical(model.state_dict(), layout)
    assert all(torch.equal(to_canonical(weights)[name], value) for name, value in model.state_dict().items())
    last_map, pooled, _ = expect(model, images)
    theirs = run(weights, images)
    assert theirs.library.startswith('ConvNeXtV2') == (layout in ('official-dense', 'spark'))
    torch.testing.assert_close(theirs.last_map, last_map, rtol=1e-5, atol=1e-5 * last_map.abs().max().item())
    torch.testing.assert_close(theirs.pooled, pooled, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='official-sparse layout has no place for 7 keys: stages.0.0.gamma'):
        from_canonical(model.state_dict(), 'official-sparse')


def classify(layout, weights, images, **settings):
    """The scores of a whole classifier in the library of its layout."""
    kind = 'ConvNext' if settings else 'ConvNextV2'
    if layout == 'canonical':
        from framework_models import build

        model = build('classifier', **settings)
    elif layout == 'huggingface':
        transformers = pytest.importorskip('transformers')
        model = getattr(transformers, f'{kind}ForImageClassification')(
            getattr(transformers, f'{kind}Config')(
                depths=list(NARROW['depths']), hidden_sizes=list(NARROW['channels']), num_labels=3, layer_norm_eps=1e-6
            )
        )
    else:
        import timm

        name = 'convnext_atto' if settings else 'convnextv2_atto'
        model = timm.create_model(name, num_classes=3, depths=NARROW['depths'], dims=NARROW['channels'])
    model.load_state_dict(weights, strict=True)
    model.eval()
    with torch.no_grad():
        scores = model(images)
    return scores.logits if layout == 'huggingface' else scores[0] if isinstance(scores, tuple) else scores


@pytest.mark.parametrize('settings', [{}, V1], ids=['v2', 'v1'])
@pytest.mark.parametrize('layout', CLASSIFIERS)
def test_whole_classifiers_keep_their_scores(tmp_path, layout, settings):
    """A classifier goes into every layout that has one and back, head included, bit for bit; mmpretrain, timm and
    Hugging Face compute the same scores from it."""
    model, images = make(**settings), torch.randn(2, 3, 64, 96)
    head = nn.Linear(10, 3)
    weights = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    weights.update({f'head.fc.{name}': value for name, value in head.state_dict().items()})
    source, target, back = (str(tmp_path / name) for name in ('source.pth', 'target.pth', 'back.safetensors'))
    torch.save(dict(state_dict=weights), source)
    assert '0 dropped' in convert_file(source, target, layout, classifier=True)
    convert_file(target, back, 'canonical', classifier=True)
    found = load_file(back)
    assert set(found) == set(weights)
    assert all(torch.equal(found[name].flatten(), value.flatten()) for name, value in weights.items())
    if layout == 'official-dense':
        assert {'head.weight', 'norm.weight'} < set(load_file(target)['model'])
        return
    with torch.no_grad():
        expected = head(expect(model, images)[1])
    foreign = extract_state_dict(load_file(target))
    layout = 'timm-conv' if layout == 'timm' else layout  # what a narrow model becomes
    torch.testing.assert_close(classify(layout, foreign, images, **settings), expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_classifier_is_refused(tmp_path):
    """A backbone alone, and a layout without classifiers, raise and say so."""
    source = str(tmp_path / 'source.pth')
    torch.save(make().state_dict(), source)
    with pytest.raises(ValueError, match='not a classifier: head.fc.weight, head.fc.bias missing'):
        convert_file(source, str(tmp_path / 'a.pth'), 'timm', classifier=True)
    torch.save(official_sparse_file(make(out_norm=False).state_dict()), source)
    with pytest.raises(ValueError, match='official-sparse layout has no classifier: choose from canonical'):
        convert_file(source, str(tmp_path / 'a.pth'), 'timm', classifier=True)
