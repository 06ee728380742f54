"""Forty files for a folder of photographs: common, unusual and damaged images, and other files."""

import io
import pathlib

import numpy as np
from PIL import Image


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture(height: int = 40, width: int = 30) -> Image.Image:
    """Smooth colors with some noise, like a camera's."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)], -1)
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(_picture(), 'JPEG', exif=exif)


def odd_files() -> dict[str, tuple[bytes, bool]]:
    """Content and usability of each file, by name."""
    rgb = _picture()
    whole, png, webp = _encoded(rgb, 'JPEG'), _encoded(rgb, 'PNG'), _encoded(rgb, 'WEBP')
    deep = Image.fromarray(np.linspace(0, 65535, 1200).reshape(40, 30).astype(np.uint16))
    clear = rgb.copy()
    clear.putalpha(Image.new('L', rgb.size, 0))
    palette = rgb.quantize(16)
    used = {
        'rgb.jpg': whole,
        'grey.jpg': _encoded(rgb.convert('L'), 'JPEG'),
        'cmyk.jpg': _encoded(rgb.convert('CMYK'), 'JPEG'),
        'progressive.jpg': _encoded(rgb, 'JPEG', progressive=True),
        'lossless_chroma.jpg': _encoded(rgb, 'JPEG', subsampling=0),
        'capital.JPEG': whole,
        'mirrored.jpg': _rotated(2),
        'upside_down.jpg': _rotated(3),
        'on_its_left.jpg': _rotated(6),
        'on_its_right.jpg': _rotated(8),
        'orientation_nine.jpg': _rotated(9),
        'bytes_behind_it.jpg': whole + b'more',
        'one_pixel.jpg': _encoded(_picture(1, 1), 'JPEG'),
        'one_row.jpg': _encoded(_picture(1, 90), 'JPEG'),
        'one_column.png': _encoded(_picture(300, 1), 'PNG'),
        'large.jpg': _encoded(_picture(1500, 2000), 'JPEG'),
        'rgb.png': png,
        'grey.png': _encoded(rgb.convert('L'), 'PNG'),
        'black_and_white.png': _encoded(rgb.convert('1'), 'PNG'),
        'sixteen_bits.png': _encoded(deep, 'PNG'),
        'transparent.png': _encoded(clear, 'PNG'),
        'palette.png': _encoded(palette, 'PNG'),
        'transparent_palette.png': _encoded(palette, 'PNG', transparency=0),
        'rgb.webp': webp,
        'moving.gif': _encoded(palette, 'GIF', save_all=True, append_images=[palette.rotate(90)]),
        'rgb.bmp': _encoded(rgb, 'BMP'),
        'rgb.tiff': _encoded(rgb, 'TIFF'),
        'plain.ppm': _encoded(rgb, 'PPM'),
        'png_in_truth.jpg': png,
        'jpeg_in_truth.png': whole,
    }
    damaged = {
        'empty.jpg': b'',
        'half.jpg': whole[: len(whole) // 2],
        'header_alone.jpg': whole[:20],
        'half.png': png[: len(png) // 2],
        'half.webp': webp[: len(webp) // 2],
        'flipped_bits.png': png[:60] + bytes(255 - byte for byte in png[60:90]) + png[90:],
        'text.jpg': b'This is a text.\n',
        'web_page.png': b'<!DOCTYPE html><html><body>404</body></html>',
        'zeros.jpg': bytes(5000),
        'pdf.jpg': b'%PDF-1.4\n%binary\n',
    }
    assert len(used) + len(damaged) == 40
    return {name: (content, True) for name, content in used.items()} | {
        name: (content, False) for name, content in damaged.items()
    }


def write(folder: pathlib.Path) -> dict[str, bool]:
    """Writes the forty files; returns their usability by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = odd_files()
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {name: good for name, (_, good) in files.items()}
