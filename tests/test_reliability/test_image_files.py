"""Every odd image has one answer in pretraining: it is read as described here, or skipped and counted."""

import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.pretrain import UnlabelledImages

pytest.importorskip('hypothesis')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs', meta_keys=('img_path', 'ori_shape'))]
PIXELS = np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8)
COLOUR = Image.fromarray(PIXELS)
GREY = np.asarray(COLOUR.convert('L'))
TURNED = Image.Exif()
TURNED[0x112] = 6  # to be shown turned by 90 degrees


def encode(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def deep(pixels):
    return cv2.imencode('.png', pixels.astype(np.uint16) * 257)[1].tobytes()


def chunk(kind, content):
    import zlib

    return len(content).to_bytes(4, 'big') + kind + content + zlib.crc32(kind + content).to_bytes(4, 'big')


def announce(width, height):
    """A PNG that announces a size and holds next to nothing."""
    header = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes((8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'x') + chunk(b'IEND', b'')


READ = {  # file name: (content, what is read, in RGB)
    'grey.png': (encode(COLOUR.convert('L'), 'PNG'), np.repeat(GREY[..., None], 3, 2)),
    'grey with alpha.png': (encode(COLOUR.convert('LA'), 'PNG'), np.repeat(GREY[..., None], 3, 2)),
    'alpha.png': (encode(COLOUR.convert('RGBA'), 'PNG'), PIXELS),
    'palette.png': (encode(COLOUR.quantize(9), 'PNG'), np.asarray(COLOUR.quantize(9).convert('RGB'))),
    'one bit.png': (encode(COLOUR.convert('1'), 'PNG'), np.asarray(COLOUR.convert('1').convert('RGB'))),
    'sixteen bits.png': (deep(PIXELS[..., ::-1]), PIXELS),
    'sixteen bits grey.png': (deep(GREY), np.repeat(GREY[..., None], 3, 2)),
    'cmyk.tif': (encode(COLOUR.convert('CMYK'), 'TIFF'), PIXELS),
    'animated.png': (encode(COLOUR, 'PNG', save_all=True, append_images=[COLOUR.rotate(90)]), PIXELS),
    'png inside.jpg': (encode(COLOUR, 'PNG'), PIXELS),
    'one pixel.png': (encode(COLOUR.crop((0, 0, 1, 1)), 'PNG'), PIXELS[:1, :1]),
    'one row.png': (encode(COLOUR.crop((0, 0, 80, 1)), 'PNG'), PIXELS[:1]),
}
SKIPPED = {
    'cut.jpg': encode(COLOUR, 'JPEG')[:-200],
    'cut.png': encode(COLOUR, 'PNG')[:-3000],
    'cut.bmp': encode(COLOUR, 'BMP')[:-3000],
    'cut.webp': encode(COLOUR, 'WEBP')[:-200],
    'cut.tif': encode(COLOUR, 'TIFF')[:-3000],
    'cut.ppm': encode(COLOUR, 'PPM')[:-3000],
    'empty.jpg': b'',
    'text.png': b'<html>',
    'floats.tif': encode(Image.fromarray(PIXELS[..., 0] / np.float32(9)), 'TIFF'),
    'huge.png': announce(2**20, 2**20),
}


def load(folder):
    (folder / 'whole.png').write_bytes(encode(COLOUR, 'PNG'))
    dataset = UnlabelledImages(str(folder), PIPELINE, max_corrupt_share=0.9)
    samples = [dataset[index] for index in range(len(dataset))]
    return {
        os.path.basename(one['data_samples'].img_path): one['inputs'].numpy()[::-1].transpose(1, 2, 0)
        for one in samples
    }, dataset


@pytest.mark.parametrize('name', READ)
def test_odd_images_are_read(tmp_path, name):
    """Depths, channels, animations and wrong endings are read as 8-bit colour: alpha is dropped, the first frame is
    taken, 16 bits are divided by 257 within one step, and the content, not the ending, says what it is."""
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content)
    read, dataset = load(tmp_path)
    assert read[name].shape == expected.shape and not dataset._corrupt.any()
    assert abs(read[name].astype(int) - expected).max() <= 1


def test_turned_and_cmyk_photographs_are_read(tmp_path):
    """A JPEG comes upright as its orientation tag says, a CMYK one in colour; both equal Pillow's reading except for
    the losses of decoders."""
    from PIL import ImageOps

    smooth = COLOUR.resize((9, 8)).resize((80, 70), Image.BICUBIC)
    for name, image, options in (('turned.jpg', smooth, dict(exif=TURNED)), ('cmyk.jpg', smooth.convert('CMYK'), {})):
        (tmp_path / name).write_bytes(encode(image, 'JPEG', quality=95, **options))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)).convert('RGB')).astype(int)
        read = load(tmp_path)[0][name]
        assert read.shape == expected.shape and abs(read - expected).mean() < 3, name


@pytest.mark.parametrize('name', SKIPPED)
def test_damaged_images_are_skipped(tmp_path, name):
    """Cut, empty, foreign and impossibly huge files are counted, and another image takes their place."""
    (tmp_path / name).write_bytes(SKIPPED[name])
    read, dataset = load(tmp_path)
    assert set(read) == {'whole.png'} and int(dataset._corrupt.sum()) == 1


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(('PNG', 'JPEG', 'BMP', 'WEBP', 'TIFF', 'PPM')), st.data())
def test_any_cut_or_flipped_bytes_are_read_or_skipped(tmp_path_factory, form, data):
    """Wherever a file of any format is cut, or whatever byte of it is changed, it is read or skipped; nothing else is
    raised, and a cut at any place before the last ten bytes is never taken for a whole image."""
    content, folder = bytearray(encode(COLOUR, form)), tmp_path_factory.mktemp('fuzzed')
    place = data.draw(st.integers(0, len(content) - 11))
    cut = data.draw(st.booleans())
    if cut:
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / f'fuzzed.{form.lower()}').write_bytes(content)
    read, dataset = load(folder)
    assert 'whole.png' in read and (not cut or set(read) == {'whole.png'})


def test_folder_that_may_not_be_read_is_named():
    """A folder without permission to read it, and a link that leads nowhere, are not passed over in silence."""
    user = os.geteuid()
    with TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        os.chmod(name, 0o755)
        folder = Path(name)
        (folder / 'a').mkdir()
        (folder / 'a' / 'lost.png').symlink_to(folder / 'nowhere.png')
        assert load(folder)[1]._corrupt.sum() <= 1
        (folder / 'closed').mkdir(mode=0)
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises((PermissionError, ValueError), match='closed'):
                UnlabelledImages(name, PIPELINE)
        finally:
            os.seteuid(user)
            os.chmod(folder / 'closed', 0o700)
