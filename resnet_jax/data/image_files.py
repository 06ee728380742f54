"""Image files in folders: which files are images, which names are ignored, and what is left out."""

import bisect
import dataclasses
import functools
import os
import posixpath
import warnings
from collections.abc import Iterable, Iterator

from PIL import Image

from resnet_jax.text import shown

# Formats whose files are taken for images by their suffix, without opening them. MPO is a JPEG.
_NAMED_FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'DIB', 'TIFF', 'WEBP', 'AVIF', 'JPEG2000', 'PPM', 'TGA', 'QOI')
_MORE_SUFFIXES = ('.mpo', '.jif', '.jfi')
# Formats by which files with any other suffix are recognized; TGA has no signature.
_FORMATS = (*(name for name in _NAMED_FORMATS if name != 'TGA'), 'PSD', 'ICO', 'PCX', 'SGI', 'DDS')
# What operating systems, network drives and archives add, in lower case; see also names that start with a dot.
_SYSTEM_NAMES = {
    *('__macosx', 'icon\r', 'network trash folder', 'temporary items'),
    *('$recycle.bin', 'recycler', 'system volume information', 'thumbs.db', 'ehthumbs.db', 'desktop.ini', 'found.000'),
    *('lost+found', '__pycache__'),
    *('@eadir', '@tmp', '#recycle', '#snapshot', '@recycle', '@__thumb', '@recently-snapshot'),
}
_NAMED = 3  # names in a message


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of image files in lower case, with the dot: those that the installed Pillow reads."""
    known = Image.registered_extensions().items()  # loads all of Pillow's readers
    return frozenset(suffix for suffix, name in known if name in _NAMED_FORMATS and name in Image.OPEN) | set(
        _MORE_SUFFIXES
    )


def is_image(path: str) -> bool:
    """Whether a file's first bytes are those of an image that Pillow reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]).close()
    except Image.DecompressionBombError:
        return True  # decoding reports it
    except Exception:  # Pillow's readers raise exceptions of any type
        return False
    return True


def is_ignored(name: str) -> bool:
    """Whether a file or folder belongs to the system: its name starts with a dot or is a known one."""
    return name.startswith('.') or name.lower() in _SYSTEM_NAMES


def in_words(names: Iterable[str], count: int | None = None) -> str:
    """The first names of a list, on one line.

    Args:
      names: at least one name, in order.
      count: number of names, if the list is only its start.
    """
    names = list(names)
    more = (len(names) if count is None else count) - _NAMED
    first = map(shown, names[:_NAMED])
    return ', '.join(first) + (f' and {more:,} more' if more > 0 else '')


@dataclasses.dataclass
class Counted:
    """Counts names, and keeps the first in alphabetical order."""

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        """Counts a name."""
        self.count += 1
        bisect.insort(self.first, name)
        del self.first[_NAMED:]

    def __str__(self) -> str:
        return in_words(self.first, self.count)


class Listing:
    """Lists the images below a folder, and counts what is left out. All names are relative to the folder.

    Args:
      root: the folder.

    Attributes:
      folders: names of all listed subfolders.
      other: files that are not images.
      system: files and folders that are ignored, see ``is_ignored``.
      outside: images outside of class folders.
      empty: folders of classes without any files.
      without_images: folders of classes that contain files, but no images.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = os.fspath(root)
        self.folders: list[str] = []
        self.without_images: list[str] = []
        self.other, self.system, self.outside, self.empty = (Counted() for _ in range(4))

    def images(self, folder: str = '') -> list[str]:
        """Sorted names of all images in a folder and below."""
        return sorted(self._images(folder))

    def _images(self, folder: str) -> Iterator[str]:
        suffixes = image_suffixes()
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                name = posixpath.join(folder, entry.name)  # '/' on every system: folder._hold_out hashes this name
                if is_ignored(entry.name):
                    self.system.add(name)
                elif entry.is_dir():
                    self.folders.append(name)
                    yield from self._images(name)
                elif _has_suffix(entry.name, suffixes) and (entry.is_file() or entry.is_symlink()):
                    yield name  # reading a broken link reports it
                elif entry.is_file() and is_image(os.path.join(self.root, name)):
                    yield name
                else:
                    self.other.add(name)

    def by_class(self, folder: str) -> dict[str, list[str]]:
        """Sorted names of the images of each class that has some; classes are the subfolders of a folder."""
        suffixes, classes = image_suffixes(), []
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                name = posixpath.join(folder, entry.name)
                if is_ignored(entry.name):
                    self.system.add(name)
                elif entry.is_dir():
                    classes.append(entry.name)
                elif _has_suffix(entry.name, suffixes):
                    self.outside.add(name)
        self.folders += [posixpath.join(folder, label) for label in classes]
        found = {}
        for label in sorted(classes):
            others, name = self.other.count, posixpath.join(folder, label)
            if images := self.images(name):
                found[label] = images
            elif self.other.count > others:
                self.without_images.append(name)
            else:
                self.empty.add(name)
        return found

    def count_system_folders(self) -> None:
        """Counts the system's folders beside those of the splits, without hidden ones."""
        with os.scandir(self.root) as entries:
            for entry in entries:
                if is_ignored(entry.name) and not entry.name.startswith('.') and entry.is_dir():
                    self.system.add(entry.name)

    def left_out(self) -> str:
        """What was left out, in words; empty if nothing was."""
        kinds = (
            ('file that is not an image', 'files that are not images', self.other),
            ('image outside of the class folders', 'images outside of the class folders', self.outside),
            ('hidden or system file or folder', 'hidden or system files and folders', self.system),
            ('empty class folder', 'empty class folders', self.empty),
        )
        found = (
            f'{some.count:,} {one if some.count == 1 else many} ({some})' for one, many, some in kinds if some.count
        )
        return ', '.join(found)


def subfolders(path: str | os.PathLike[str]) -> list[str]:
    """Sorted names of the subfolders of a folder, without those of the system."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_ignored(entry.name))


def _has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    _, dot, suffix = name.rpartition('.')
    return dot + suffix.lower() in suffixes


def _files(count: int) -> str:
    return f'{count:,} file{"s" if count > 1 else ""}'


def find_images(root: str | os.PathLike[str]) -> list[str]:
    """Sorted names, relative to a folder, of all images in it and below; warns about files that are left out.

    Args:
      root: the folder.

    Raises:
      OSError: it cannot be read.
    """
    listing = Listing(root)
    names = listing.images()
    if left_out := listing.left_out():
        warnings.warn(f'{listing.root}: left out {left_out}', stacklevel=2)
    return names
