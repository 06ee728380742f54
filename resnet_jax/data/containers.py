"""The parts of an image file that hold its pixels, without metadata: color profiles, texts, thumbnails, and so on.

Pillow refuses a whole file if it cannot read a part of its metadata: a PNG with a large color profile or a wrong
checksum in a comment, a JPEG with a short APP segment, a WebP that ends within its EXIF data.
"""

import struct
import zlib
from collections.abc import Iterator

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
# All that determines the colors of a PNG; transparency is dropped.
_PNG_PIXELS = (b'IHDR', b'PLTE', b'IDAT', b'IEND')
_PNG_END = b'\0\0\0\0IEND\xaeB`\x82'
# Texts of PNG files that hold an orientation: EXIF as ImageMagick writes it, and XMP.
_PNG_ORIENTATION = (
    (b'tEXt', b'Raw profile type exif\0'),
    (b'zTXt', b'Raw profile type exif\0'),
    (b'iTXt', b'XML:com.'),
)
# APP1 segments with EXIF or XMP.
_JPEG_ORIENTATION = (b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0')
# Smallest lengths of the JFIF and Adobe segments, which determine how colors are decoded.
_JPEG_COLORS = {0xE0: (b'JFIF\0', 14), 0xEE: (b'Adobe', 12)}
_START_OF_SCAN = 0xDA


def without_metadata(data: bytes, orientation: bool) -> bytes | None:
    """Removes from an image file what does not affect its pixels.

    The pixels' own parts are copied as they are, so a file with damaged pixels remains damaged.

    Args:
      data: an encoded image.
      orientation: whether to keep the parts that can hold the image's orientation.

    Returns:
      The new file, or None if the format is not PNG, JPEG or WebP, or no pixels are found.
    """
    if data.startswith(_PNG):
        return _of_png(data, orientation)
    if data.startswith(_JPEG):
        return _of_jpeg(data, orientation)
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return _of_webp(data, orientation)
    return None


def _of_png(data: bytes, orientation: bool) -> bytes | None:
    kept, position, found = [_PNG], len(_PNG), False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        chunk = data[position : position + 12 + length]
        position += 12 + length
        content, whole = chunk[8 : 8 + length], len(chunk) == 12 + length
        if kind in _PNG_PIXELS:
            kept.append(chunk)
        elif whole and orientation and (kind == b'eXIf' or _holds_orientation(kind, content)):
            kept.append(chunk[:-4] + struct.pack('>I', zlib.crc32(chunk[4:-4])))
        found |= kind == b'IDAT'
        if kind == b'IEND':
            break
    else:
        kept.append(_PNG_END)  # the file ends within its metadata, or this is left unread behind damaged pixels
    return b''.join(kept) if found else None


def _holds_orientation(kind: bytes, content: bytes) -> bool:
    return any(kind == known and content.startswith(start) for known, start in _PNG_ORIENTATION)


def _of_jpeg(data: bytes, orientation: bool) -> bytes | None:
    kept = [_JPEG]
    for marker, start, end in _jpeg_segments(data):
        content = data[start + 4 : end]
        if marker == _START_OF_SCAN:
            return b''.join([*kept, data[start:]])
        if marker in _JPEG_COLORS:
            name, least = _JPEG_COLORS[marker]
            needed = content.startswith(name) and len(content) >= least
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            needed = orientation and marker == 0xE1 and content.startswith(_JPEG_ORIENTATION)
        else:
            needed = True
        if needed:
            kept.append(data[start:end])
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of the segments of a JPEG; the last one is the first start of scan."""
    position = len(_JPEG)
    while (position := data.find(b'\xff', position)) >= 0 and position + 4 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], 'big')
        if marker in (0x00, 0xFF) or length < 2:  # padding
            position += 1
            continue
        yield marker, position, position + 2 + length
        if marker == _START_OF_SCAN:
            return
        position += 2 + length


def _of_webp(data: bytes, orientation: bool) -> bytes | None:
    """Of a WebP without animation; without its alpha channel, since transparency is dropped."""
    pixels, exif, size, position = b'', b'', b'', 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from('<4sI', data, position)
        chunk = data[position : position + 8 + length + length % 2]
        position += len(chunk)
        if kind in (b'VP8 ', b'VP8L'):
            pixels = chunk
        elif kind == b'VP8X':
            size = chunk[12:18]
        elif kind == b'EXIF' and len(chunk) >= 8 + length:
            exif = chunk + b'\0' * (len(chunk) % 2)
    if not pixels:
        return None
    if exif and orientation and len(size) == 6:
        body = b'VP8X\x0a\0\0\0\x08\0\0\0' + size + pixels + exif
    else:
        body = pixels
    return b'RIFF' + struct.pack('<I', 4 + len(body)) + b'WEBP' + body
