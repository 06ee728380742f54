import hashlib
import io
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from resnet_jax.data import examples as examples_module
from resnet_jax.data import tfds_source
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.decode import decode
from resnet_jax.data.digits import ATTRIBUTES, slant, split_indices
from resnet_jax.data.examples import Dataset, Split, classes_of, dataset_from_arrays, resize_images
from resnet_jax.errors import InputError

IMAGE = tfds.features.Tensor(shape=(5, 4, 3), dtype=np.uint8)
LABEL = tfds.features.ClassLabel(names=['ant', 'bee', 'cat'])
Examples = Sequence[Mapping[str, Any]]


def prepare(
    data_dir: pathlib.Path, features: Mapping[str, Any], file_format: str = 'array_record', **splits: Examples
) -> pathlib.Path:
    """Writes examples as the TFDS dataset ``toy``, which TFDS then reads from its files, without code."""

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.2.3')

        def _info(self) -> tfds.core.DatasetInfo:
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples: Examples) -> Any:
            yield from enumerate(examples)

    builder = Toy(data_dir=data_dir)
    builder.download_and_prepare(file_format=file_format)
    return pathlib.Path(builder.data_dir)


def make_examples(rng: np.random.Generator, num: int, shape: tuple[int, ...] = (5, 4, 3)) -> Examples:
    return [{'image': rng.integers(0, 256, shape, np.uint8), 'label': i % 3} for i in range(num)]


def encode(image: np.ndarray, image_format: str = 'png', mode: str | None = None) -> bytes:
    picture, file = Image.fromarray(image), io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, image_format)
    return file.getvalue()


def write_arrays(folder: pathlib.Path, **changes: Any) -> str:
    """Writes two valid files with changes: ``train_images=…`` replaces an array, None omits it."""
    rng = np.random.default_rng(0)
    for split, num in (('train', 12), ('test', 6)):
        arrays = {'images': rng.integers(0, 256, (num, 5, 4, 3), np.uint8), 'labels': np.arange(num) % 3}
        for key in arrays:
            arrays[key] = changes.get(f'{split}_{key}', arrays[key])
        np.savez(folder / f'{split}.npz', **{key: value for key, value in arrays.items() if value is not None})
    return f'arrays:{folder}'


def error_of(name: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(name, **options)
    message = str(caught.value)
    assert '\n' not in message
    return message


def assert_same(split: Split, examples: Examples) -> None:
    np.testing.assert_array_equal(split.images, np.stack([example['image'] for example in examples]))
    np.testing.assert_array_equal(split.labels, [example['label'] for example in examples])
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


@pytest.fixture(scope='module')
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp('digits'))


@pytest.fixture(scope='module')
def digits(digits_dir: str) -> Dataset:
    return load_dataset('digits', data_dir=digits_dir)


class TestDigits:
    def test_split_never_changes(self) -> None:
        np.random.seed(7)  # noqa: NPY002, the split must not notice
        train, test = split_indices(load_digits().target)
        digest = hashlib.sha256(np.concatenate([train, test]).astype('<i8').tobytes()).hexdigest()
        assert digest == 'd607de9cbfbc8e0646323c1249b790f8dbbfe2245decda6cdcdf0aedb3f6fa1f'

    def test_split_is_stratified_disjoint_and_complete(self) -> None:
        labels = load_digits().target
        train, test = split_indices(labels)
        assert (len(train), len(test)) == (1437, 360)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
        np.testing.assert_array_equal(np.bincount(labels[test]), np.full(10, 36))
        np.testing.assert_array_equal(np.bincount(labels[train]), np.bincount(labels) - 36)

    def test_images_and_labels(self, digits: Dataset) -> None:
        source = load_digits()
        levels = source.images.astype(int)
        expected = ((levels * 255 + 8) // 16)[..., None]  # rounded in integers
        for split, indices in zip((digits.train, digits.test), split_indices(source.target), strict=True):
            np.testing.assert_array_equal(split.images, expected[indices])
            np.testing.assert_array_equal(split.labels, source.target[indices])
            assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert digits.train.images.max() == 255

    def test_checksum(self, digits: Dataset) -> None:
        digest = hashlib.sha256()
        for split in (digits.train, digits.test):
            digest.update(split.images.tobytes() + split.labels.astype('<i4').tobytes())
        assert digest.hexdigest() == 'edbeccb97521cd9113a3dd67cc980ab1936258647d5ff24545e35889dc591065'

    def test_description(self, digits: Dataset) -> None:
        assert (digits.name, digits.num_classes, digits.image_shape) == ('digits', 10, (8, 8, 1))
        assert (len(digits.train), len(digits.test)) == (1437, 360)
        assert digits.class_names == tuple('0123456789')

    def test_second_load_prints_nothing(
        self, digits: Dataset, digits_dir: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        files = {path: path.stat().st_mtime_ns for path in pathlib.Path(digits_dir).rglob('*')}
        again = load_dataset('digits', data_dir=digits_dir)
        np.testing.assert_array_equal(again.train.images, digits.train.images)
        assert {path: path.stat().st_mtime_ns for path in pathlib.Path(digits_dir).rglob('*')} == files
        assert capfd.readouterr() == ('', '')

    def test_first_load_prints_only_the_folder(
        self, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        load_dataset('digits', data_dir=str(tmp_path))
        assert capfd.readouterr() == ('', f'preparing digits in {tmp_path}/digits/1.1.0\n')
        assert not caplog.records

    def test_is_a_tfds_dataset(self, digits: Dataset, digits_dir: str) -> None:
        builder = tfds.builder('digits', data_dir=digits_dir)
        assert builder.is_prepared()
        assert str(builder.version) == '1.1.0'
        assert builder.info.features['image'].shape == (8, 8, 1)
        assert builder.as_data_source('test')[0]['label'] == digits.test.labels[0]

    @pytest.mark.parametrize('task', ['binary', 'multilabel', 'regression'])
    def test_other_tasks_have_the_same_images(self, task: str, digits: Dataset, digits_dir: str) -> None:
        dataset = load_dataset('digits', task=task, data_dir=digits_dir)
        assert dataset.task.name == task
        np.testing.assert_array_equal(dataset.train.images, digits.train.images)
        for split, known in ((dataset.train, digits.train), (dataset.test, digits.test)):
            if task == 'binary':
                assert dataset.class_names == ('even', 'odd')
                np.testing.assert_array_equal(split.labels, known.labels % 2)
            elif task == 'multilabel':
                assert dataset.class_names == tuple(ATTRIBUTES)
                for column, true_of in enumerate(ATTRIBUTES.values()):
                    np.testing.assert_array_equal(split.labels[:, column], np.isin(known.labels, true_of))
            else:
                assert dataset.class_names == ('slant',)
                assert (split.labels.dtype, split.labels.shape) == (np.float32, (len(split), 1))
                # Equal for pixels with 256 or 17 levels, up to rounding.
                np.testing.assert_allclose(split.labels[:, 0], slant(split.images[..., 0].astype(float)), atol=0.1)

    def test_slant_by_hand(self) -> None:
        upright, leaning = np.zeros((5, 5)), np.eye(5)[::-1]
        upright[:, 2] = 3
        np.testing.assert_allclose(slant(np.stack([upright, leaning, leaning[:, ::-1]])), [0, 45, -45], atol=1e-5)

    def test_folder_that_cannot_be_written(self) -> None:
        message = error_of('digits', data_dir='/proc/nothing')
        assert message.startswith("'digits': TFDS could not prepare the dataset (")
        assert message.endswith('prepared files are expected in /proc/nothing/digits/1.1.0')


def test_import_is_cheap(root: pathlib.Path) -> None:
    code = 'import sys, resnet_jax.data.datasets; print({"tensorflow_datasets", "tensorflow"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == 'set()\n'


class TestStatistics:
    def test_equal_numpy(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        images = rng.integers(0, [256, 100, 20], (600, 5, 4, 3)).astype(np.uint8)  # more than one chunk
        dataset = load_dataset(write_arrays(tmp_path, train_images=images, train_labels=np.arange(600) % 3))
        scaled = images / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-12)

    def test_digits(self, digits: Dataset) -> None:
        scaled = digits.train.images / 255
        np.testing.assert_allclose(digits.mean, [scaled.mean()], rtol=1e-12)
        np.testing.assert_allclose(digits.std, [scaled.std()], rtol=1e-12)

    def test_std_of_constant_images_is_positive(self, tmp_path: pathlib.Path) -> None:
        dataset = load_dataset(write_arrays(tmp_path, train_images=np.full((12, 5, 4, 3), 51, np.uint8)))
        assert dataset.mean == (0.2, 0.2, 0.2)
        assert dataset.std == (1 / 255, 1 / 255, 1 / 255)


class TestResize:
    def test_halving_averages(self) -> None:
        image = np.array([[0, 100], [100, 200]], np.uint8)
        gray = resize_images(np.stack([image, image // 2])[..., None], 1)
        np.testing.assert_array_equal(gray, np.array([100, 50]).reshape(2, 1, 1, 1))
        color = resize_images(np.stack([image, image // 2, image + 20], axis=-1)[None], 1)
        np.testing.assert_array_equal(color, np.array([100, 50, 120]).reshape(1, 1, 1, 3))

    @pytest.mark.parametrize('channels', [1, 3])
    def test_shapes_and_constants(self, channels: int) -> None:
        resized = resize_images(np.full((2, 5, 4, channels), 77, np.uint8), 7)
        np.testing.assert_array_equal(resized, np.full((2, 7, 7, channels), 77))
        assert resized.dtype == np.uint8

    def test_own_size_changes_nothing(self, rng: np.random.Generator) -> None:
        images = rng.integers(0, 256, (2, 6, 6, 3), np.uint8)
        np.testing.assert_array_equal(resize_images(images, 6), images)

    def test_in_load_dataset(self, digits: Dataset, digits_dir: str) -> None:
        resized = load_dataset('digits', data_dir=digits_dir, image_size=5)
        np.testing.assert_array_equal(resized.test.images, resize_images(digits.test.images, 5))
        np.testing.assert_allclose(resized.std, [(resized.train.images / 255).std()], rtol=1e-12)

    def test_size_below_one(self) -> None:
        assert error_of('synthetic', image_size=0) == 'image_size=0 must be at least 1'


class TestClasses:
    def test_selected_classes_are_renumbered(self, digits: Dataset) -> None:
        part = classes_of(digits, [3, 5, 9], 4)
        assert part.class_names == ('3', '5', '9')
        assert (len(part.train), len(part.test)) == (12, 108)
        np.testing.assert_array_equal(np.bincount(part.train.labels), [4, 4, 4])
        places = np.flatnonzero(digits.test.labels == 5)
        np.testing.assert_array_equal(part.test.images[part.test.labels == 1], digits.test.images[places])
        assert (part.mean, part.std) == (digits.mean, digits.std)

    @pytest.mark.parametrize(
        ('classes', 'limit', 'message'),
        [
            ([3, 10], None, 'class 10 does not exist'),
            ([1], 1000, 'examples_per_class=1000 must be at most 146'),
            ([5, 3], None, r'classes=\[5, 3\] must be in ascending order'),
        ],
    )
    def test_invalid_selections(self, classes: list[int], limit: int | None, message: str, digits: Dataset) -> None:
        with pytest.raises(InputError, match=message):
            classes_of(digits, classes, limit)


class TestSynthetic:
    def test_shape_and_range(self) -> None:
        dataset = load_dataset('synthetic')
        assert (len(dataset.train), len(dataset.test), dataset.image_shape) == (1024, 256, (32, 32, 3))
        assert dataset.num_classes == 10
        assert set(dataset.train.labels) == set(range(10))
        assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)
        assert load_dataset('synthetic', image_size=8).image_shape == (8, 8, 3)

    def test_depends_only_on_the_seed(self) -> None:
        first, again, other = (load_dataset('synthetic', image_size=8, seed=seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first.train.images, again.train.images)
        np.testing.assert_array_equal(first.test.labels, again.test.labels)
        assert not np.array_equal(first.train.images, other.train.images)

    def test_too_large(self) -> None:
        assert 'synthetic' in (message := error_of('synthetic', image_size=2000))
        assert message.endswith('1,280 images of 2000 x 2000 x 3 do not fit in memory: 14.3 GiB, at most 6 GiB')


class TestArrays:
    def test_values(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        dataset = load_dataset(name)
        for split, file in ((dataset.train, 'train.npz'), (dataset.test, 'test.npz')):
            stored = np.load(tmp_path / file)
            np.testing.assert_array_equal(split.images, stored['images'])
            np.testing.assert_array_equal(split.labels, stored['labels'])
            assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert (dataset.name, dataset.class_names, dataset.image_shape) == (name, ('0', '1', '2'), (5, 4, 3))

    def test_gray_without_channels(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        train, test = rng.integers(0, 256, (12, 5, 4), np.uint8), rng.integers(0, 256, (6, 5, 4), np.uint8)
        dataset = load_dataset(write_arrays(tmp_path, train_images=train, test_images=test))
        assert dataset.image_shape == (5, 4, 1)
        np.testing.assert_array_equal(dataset.test.images[..., 0], test)

    def test_class_names(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        (tmp_path / 'classes.txt').write_text('ant\nbee\ncat\n\ndög\n', encoding='utf-8')
        assert load_dataset(name).class_names == ('ant', 'bee', 'cat', 'dög')

    @pytest.mark.parametrize(
        'text',
        [
            b'\xef\xbb\xbfant\nbee\ncat',
            b'ant\r\nbee\r\ncat\r\n',
            b'ant\rbee\rcat\r',
            b'\n ant \t\n\nbee\xc2\xa0\n\xef\xbb\xbfcat\n \n',
        ],
        ids=['byte order mark', 'CRLF', 'CR', 'blanks'],
    )
    def test_class_names_of_any_editor(self, text: bytes, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        (tmp_path / 'classes.txt').write_bytes(text)
        assert load_dataset(name).class_names == ('ant', 'bee', 'cat')

    def test_only_ends_of_lines_separate_names(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        (tmp_path / 'classes.txt').write_text('ant\u2028x\nbee\x1cy\ncat\x85z', encoding='utf-8')
        assert load_dataset(name).class_names == ('ant\u2028x', 'bee\x1cy', 'cat\x85z')

    def test_labels_in_too_few_bits(self, tmp_path: pathlib.Path) -> None:
        """Label 256 has become 0."""
        labels = np.arange(12, dtype=np.uint8) % 3
        name = write_arrays(tmp_path, train_labels=labels, test_labels=labels[:6])
        (tmp_path / 'classes.txt').write_text('\n'.join(map(str, range(257))))
        assert error_of(name).endswith('train.npz: labels of 257 classes cannot be uint8')
        (tmp_path / 'classes.txt').write_text('\n'.join(map(str, range(256))))
        assert load_dataset(name).num_classes == 256

    def test_repeated_names_of_a_given_dataset(self) -> None:
        images = np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)
        with pytest.raises(InputError, match="'own': the names of classes must differ, found 'cat' several times"):
            dataset_from_arrays('own', images, images, ('cat', 'cat'))

    def test_other_arrays_are_not_read(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        arrays = dict(np.load(tmp_path / 'train.npz'))
        np.savez(tmp_path / 'train.npz', **arrays, names=np.array([{'a': 1}], object))
        assert len(load_dataset(name).train) == 12

    def test_image_size_makes_shapes_equal(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path, test_images=np.zeros((6, 9, 7, 3), np.uint8))
        dataset = load_dataset(name, image_size=3)
        assert dataset.image_shape == dataset.test.images.shape[1:] == (3, 3, 3)

    def test_no_folder(self, tmp_path: pathlib.Path) -> None:
        name = f'arrays:{tmp_path}/nothing'
        assert error_of(name) == f"'{name}': folder not found; expected a folder with train.npz and test.npz"
        assert 'folder not found' in error_of('arrays:')

    def test_no_file(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        (tmp_path / 'test.npz').unlink()
        message = f'{tmp_path}/test.npz: file not found; expected an .npz file with images and labels'
        assert error_of(name) == message

    @pytest.mark.parametrize('damage', ['empty', 'text', 'truncated', 'flipped', 'npy', 'folder', 'pickle'])
    def test_damaged_file(self, damage: str, tmp_path: pathlib.Path) -> None:
        name, path = write_arrays(tmp_path), tmp_path / 'train.npz'
        content = path.read_bytes()
        middle = len(content) // 3
        contents = {
            'empty': b'',
            'text': b'images and labels',
            'truncated': content[: len(content) // 2],
            'flipped': content[:middle]
            + bytes(255 - byte for byte in content[middle : middle + 9])
            + content[middle + 9 :],
        }
        path.unlink()
        if damage in contents:
            path.write_bytes(contents[damage])
        elif damage == 'npy':
            with path.open('wb') as file:
                np.save(file, np.zeros(3))
        elif damage == 'folder':
            path.mkdir()
        else:
            np.savez(path, images=np.array([{}], object), labels=np.zeros(1, int))
        assert error_of(name).startswith(f'{path}: not a valid .npz file of plain arrays (')

    @pytest.mark.parametrize(
        ('changes', 'message'),
        [
            ({'train_labels': None}, 'train.npz: expected the arrays images and labels, found images'),
            ({'test_images': None, 'test_labels': None}, 'test.npz: expected the arrays images and labels, found none'),
            (
                {'test_images': np.zeros((6, 5, 4, 3), np.float32)},
                'test.npz: images must be uint8 from 0 to 255, found float32',
            ),
            (
                {'train_labels': np.zeros(12)},
                'labels must be integers, found float64; use labels.astype(int), or task=regression for other numbers',
            ),
            ({'train_labels': np.zeros(12, bool)}, 'found bool; use labels.astype(int), or task=binary'),
            (
                {'train_labels': np.array(['ant'] * 12)},
                'np.unique(labels, return_inverse=True) for class names and integers',
            ),
            (
                {'train_images': np.zeros((12, 3, 5, 4), np.uint8)},
                'found (12, 3, 5, 4); np.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]',
            ),
            (
                {'train_labels': np.zeros((12, 2), int), 'test_labels': np.zeros((6, 2), int)},
                'columns of 0 and 1 need task=multilabel',
            ),
            ({'train_images': np.zeros((12, 60), np.uint8)}, '1 or 3 channels, found (12, 60)'),
            ({'train_images': np.zeros((12, 5, 4, 4), np.uint8)}, '1 or 3 channels, found (12, 5, 4, 4)'),
            ({'train_images': np.zeros((0, 5, 4, 3), np.uint8)}, 'at least one pixel, found shape (0, 5, 4, 3)'),
            ({'train_images': np.zeros((12, 0, 4, 3), np.uint8)}, 'at least one pixel, found shape (12, 0, 4, 3)'),
            (
                {'test_labels': np.zeros(5, int)},
                'test.npz: expected 6 labels, one per image, found shape (5,)',
            ),
            ({'test_labels': np.zeros((3, 2), int)}, 'expected 6 labels, one per image, found shape (3, 2)'),
            (
                {'test_images': np.zeros((6, 4, 5, 3), np.uint8)},
                'expected images of 5 x 4 x 3 like the training images, found 4 x 5 x 3',
            ),
            (
                {'test_images': np.zeros((6, 5, 4), np.uint8)},
                'expected images of 5 x 4 x 3 like the training images, found 5 x 4 x 1',
            ),
            ({'train_labels': np.arange(12) - 1}, 'train.npz: labels must be from 0 to 9999, found -1'),
            ({'train_labels': np.arange(12, dtype=np.uint64) * 2**40}, f'from 0 to 9999, found {11 * 2**40}'),
            ({'train_labels': np.arange(12) * 10**6}, 'labels must be from 0 to 9999, found 11000000'),
            (
                {'train_labels': np.array([0, 1, 2, 255] * 3)},
                'labels go up to 255, but label 3 is missing; classes.txt can name the classes',
            ),
            ({'test_labels': np.arange(6)}, 'test.npz: labels must be from 0 to 2, found 5'),
        ],
    )
    def test_wrong_arrays(self, changes: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
        assert error_of(write_arrays(tmp_path, **changes)).endswith(message)

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            (b'ant\nbee\n', 'train.npz: labels must be from 0 to 1, found 2'),
            (b' \n', 'classes.txt: expected one class name per line, found none'),
            (
                'ant\ncafé\nd\n'.encode('latin-1'),
                "expected UTF-8 text; line 2 has another encoding ('utf-8' codec can't decode byte 0xe9 in position 7:"
                ' invalid continuation byte)',
            ),
            ('ant\nbee\n'.encode('utf-16'), 'expected UTF-8 text, found UTF-16 or other bytes; save it as UTF-8'),
            ('ant\nbee\n'.encode('utf-16-be'), 'expected UTF-8 text, found UTF-16 or other bytes; save it as UTF-8'),
            (b'ant\n\nbee\r\nant \n', "classes.txt: the class name 'ant' is in line 1 and again in line 4"),
            (
                'caf\u00e9\ncafe\u0301\nx'.encode(),
                "classes.txt: the class name 'cafe\u0301' is in line 1 and again in line 2",
            ),
        ],
    )
    def test_wrong_class_names(self, text: bytes, message: str, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path)
        (tmp_path / 'classes.txt').write_bytes(text)
        assert error_of(name).endswith(message)

    def test_too_large(self, tmp_path: pathlib.Path) -> None:
        assert 'do not fit in memory' in error_of(write_arrays(tmp_path), image_size=30_000)

    @pytest.mark.parametrize(
        ('task', 'labels', 'names', 'dtype', 'shape'),
        [
            ('binary', np.arange(12) % 2, ('0', '1'), np.int32, ()),
            ('binary', np.arange(12) > 5, ('0', '1'), np.int32, ()),
            ('binary', np.arange(12)[:, None] % 2, ('0', '1'), np.int32, ()),
            ('multiclass', np.arange(12, dtype=np.uint8)[:, None] % 3, ('0', '1', '2'), np.int32, ()),
            ('multilabel', np.arange(12)[:, None] % 2, ('0',), np.int32, (1,)),
            ('regression', np.linspace(-1, 9, 12)[:, None], ('value',), np.float32, (1,)),
            ('multilabel', np.eye(12, 3, dtype=np.uint8), ('0', '1', '2'), np.int32, (3,)),
            ('regression', np.linspace(-1, 9, 12), ('value',), np.float32, (1,)),
            ('regression', np.arange(24).reshape(12, 2), ('value0', 'value1'), np.float32, (2,)),
        ],
    )
    def test_targets_of_other_tasks(
        self, task: str, labels: np.ndarray, names: tuple[str, ...], dtype: type, shape: tuple[int, ...], tmp_path
    ) -> None:
        name = write_arrays(tmp_path, train_labels=labels, test_labels=labels[:6])
        dataset = load_dataset(name, task=task)
        assert (dataset.class_names, dataset.train.labels.dtype) == (names, dtype)
        assert dataset.test.labels.shape == (6, *shape)
        np.testing.assert_array_equal(dataset.train.labels.ravel(), labels.astype(dtype).ravel())

    @pytest.mark.parametrize(
        ('task', 'labels', 'message'),
        [
            ('binary', np.arange(12) % 3, 'train.npz: task=binary expects labels 0 and 1, found 2'),
            ('binary', np.zeros((12, 2), int), 'train.npz: task=binary expects labels of shape [N], found (12, 2)'),
            (
                'binary',
                np.zeros(12),
                'labels must be integers or bool, found float64; use labels.astype(int), or task=regression for other'
                ' numbers',
            ),
            ('multilabel', np.zeros(12, int), 'task=multilabel expects labels of shape [N, K], found (12,)'),
            ('multilabel', -np.ones((12, 2), int), 'task=multilabel expects labels 0 and 1, found -1'),
            ('regression', np.full(12, np.nan), 'train.npz: task=regression expects finite float32 numbers, found nan'),
            ('regression', np.zeros((12, 2, 2)), 'expects numbers [N] or [N, D], found float64 (12, 2, 2)'),
            ('regression', np.array(['a'] * 12), 'expects numbers [N] or [N, D], found <U1 (12,)'),
            (
                'regression',
                np.full(12, 1e300),
                'task=regression expects finite float32 numbers, found 1e+300',
            ),
            ('regression', np.zeros(12, complex), 'expects numbers [N] or [N, D], found complex128 (12,)'),
            (
                'multilabel',
                np.zeros((12, 0), int),
                'train.npz: expected at least one label per image, found shape (12, 0)',
            ),
            ('ordinal', np.zeros(12), "task='ordinal' must be one of multiclass, binary, multilabel, regression"),
        ],
    )
    def test_wrong_targets_of_other_tasks(
        self, task: str, labels: np.ndarray, message: str, tmp_path: pathlib.Path
    ) -> None:
        name = write_arrays(tmp_path, train_labels=labels, test_labels=labels[:6])
        assert error_of(name, task=task).endswith(message)

    def test_labels_of_two_shapes(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path, train_labels=np.zeros((12, 2)))
        message = error_of(name, task='regression')
        assert message.endswith(f'{tmp_path}/train.npz and {tmp_path}/test.npz differ: [(2,), ()]')

    def test_number_of_names_must_match_the_columns(self, tmp_path: pathlib.Path) -> None:
        name = write_arrays(tmp_path, train_labels=np.arange(12) % 2, test_labels=np.arange(6) % 2)
        (tmp_path / 'classes.txt').write_text('a\nb\nc\n')
        assert error_of(name, task='binary').endswith('expected 2 names for task=binary, found 3')


ELSEWHERE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Elsewhere(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        image, label = tfds.features.Tensor(shape=(2, 3, 1), dtype=np.uint8), tfds.features.ClassLabel(names=['a', 'b'])
        features = tfds.features.FeaturesDict({'image': image, 'label': label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(range(20)), 'test': self._generate_examples(range(20, 30))}

    def _generate_examples(self, numbers):
        for i in numbers:
            yield i, {'image': np.full((2, 3, 1), i, np.uint8), 'label': i % 2}

Elsewhere(data_dir=sys.argv[1]).download_and_prepare(file_format='array_record')
"""


class TestTfds:
    @pytest.mark.parametrize('name', ['toy', 'toy:1.2.3', 'toy:1.*.*'])
    def test_values(self, name: str, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        train, test = make_examples(rng, 7), make_examples(rng, 5)
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=train, test=test)
        dataset = load_dataset(name, data_dir=str(tmp_path))
        assert_same(dataset.train, train)
        assert_same(dataset.test, test)
        assert (dataset.name, dataset.class_names, dataset.image_shape) == (name, ('ant', 'bee', 'cat'), (5, 4, 3))
        scaled = dataset.train.images / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)

    def test_prepared_by_code_that_is_not_installed(self, tmp_path: pathlib.Path) -> None:
        subprocess.run([sys.executable, '-c', ELSEWHERE, tmp_path], check=True, capture_output=True)
        dataset = load_dataset('elsewhere', data_dir=str(tmp_path))
        assert dataset.class_names == ('a', 'b')
        for split, numbers in ((dataset.train, range(20)), (dataset.test, range(20, 30))):
            assert sorted(split.images[:, 0, 0, 0]) == list(numbers)
            np.testing.assert_array_equal(split.labels, split.images[:, 1, 2, 0] % 2)

    def test_integer_label_and_other_names(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = [{'pixels': e['image'], 'kind': e['label'], 'id': 'x'} for e in make_examples(rng, 5)]
        features = {'pixels': IMAGE, 'kind': tfds.features.Scalar(np.int32), 'id': tfds.features.Text()}
        prepare(tmp_path, features, train=examples, test=examples[:2])
        dataset = load_dataset('toy', data_dir=str(tmp_path))
        np.testing.assert_array_equal(dataset.train.labels, [0, 1, 2, 0, 1])
        assert dataset.class_names == ('0', '1', '2')

    def test_named_features_come_first(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = [{**e, 'mask': 255 - e['image'], 'coarse': 0, 'index': 7} for e in make_examples(rng, 4)]
        features = {'mask': IMAGE, 'image': IMAGE, 'coarse': LABEL, 'label': LABEL, 'index': np.int64}
        prepare(tmp_path, features, train=examples, test=examples)
        assert_same(load_dataset('toy', data_dir=str(tmp_path)).test, examples)

    def test_the_only_class_comes_before_integers(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = [{'image': e['image'], 'kind': e['label'], 'index': 7} for e in make_examples(rng, 4)]
        prepare(tmp_path, {'image': IMAGE, 'index': np.int64, 'kind': LABEL}, train=examples, test=examples)
        np.testing.assert_array_equal(load_dataset('toy', data_dir=str(tmp_path)).test.labels, [0, 1, 2, 0])

    @pytest.mark.parametrize('hidden', [True, False])
    def test_validation_where_test_has_no_labels(
        self, hidden: bool, tmp_path: pathlib.Path, rng: np.random.Generator
    ) -> None:
        train, test, validation = (make_examples(rng, num) for num in (4, 3, 2))
        if hidden:
            test = [{'image': example['image'], 'label': -1} for example in test]
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=train, test=test, validation=validation)
        assert_same(load_dataset('toy', data_dir=str(tmp_path)).test, validation if hidden else test)

    def test_encoded_images(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        color = rng.integers(0, 256, (6, 5, 3), np.uint8)
        gray = color[..., 0]
        files = [
            encode(color),
            encode(gray),
            encode(color, mode='RGBA'),
            encode(gray, 'gif'),
            encode(color, 'jpeg', 'CMYK'),
        ]
        examples = [{'image': file, 'label': 0, 'mask': file} for file in files]
        features = {'image': tfds.features.Image(), 'mask': tfds.features.Image(), 'label': LABEL}
        prepare(tmp_path, features, train=examples, test=examples[:1])
        dataset = load_dataset('toy', data_dir=str(tmp_path))
        assert (dataset.image_size, len(dataset.train), len(dataset.test)) == (224, 5, 1)
        images = [decode(dataset.train.images.read(index)[0]) for index in range(5)]
        gray_in_color = np.repeat(gray[..., None], 3, axis=-1)
        np.testing.assert_array_equal(images[:4], [color, gray_in_color, color, gray_in_color])
        assert images[4].shape == (6, 5, 3)

    def test_encoded_images_of_all_sizes(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        arrays = [rng.integers(0, 256, (size, 5), np.uint8) for size in (4, 8)]
        examples = [{'image': encode(array), 'label': label} for label, array in enumerate(arrays)]
        features = {'image': tfds.features.Image(shape=(None, None, 1)), 'label': LABEL}
        prepare(tmp_path, features, train=examples, test=examples[1:])
        dataset = load_dataset('toy', data_dir=str(tmp_path), image_size=6)
        assert (dataset.image_shape, dataset.class_names) == ((6, 6, 3), tuple(LABEL.names))
        for index, array in enumerate(arrays):
            data, label = dataset.train.images.read(index)
            assert label == index
            np.testing.assert_array_equal(decode(data)[..., 1], array)
        pixels = np.concatenate([array.ravel() for array in arrays])
        np.testing.assert_allclose(dataset.mean, pixels.mean() / 255, rtol=1e-6)
        assert dataset.test.images.name(0) == 'toy, test, example 0'

    def test_test_images_of_another_size(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        features = {'image': tfds.features.Tensor(shape=(None, 4, 3), dtype=np.uint8), 'label': LABEL}
        prepare(tmp_path, features, train=make_examples(rng, 3), test=make_examples(rng, 3, (6, 4, 3)))
        assert 'differ in size (5 x 4 x 3 and 6 x 4 x 3)' in error_of('toy', data_dir=str(tmp_path))

    @pytest.mark.parametrize(
        ('task', 'feature', 'values', 'names', 'expected'),
        [
            ('binary', tfds.features.ClassLabel(names=['no', 'yes']), [1, 0, 1], ('no', 'yes'), [1, 0, 1]),
            ('binary', tfds.features.Scalar(np.bool_), [True, False, True], ('0', '1'), [1, 0, 1]),
            ('multilabel', tfds.features.Sequence(LABEL), [['ant', 'cat'], [], ['bee']], ('ant', 'bee', 'cat'), None),
            ('multilabel', tfds.features.Tensor(shape=(3,), dtype=np.bool_), None, ('0', '1', '2'), None),
            ('regression', tfds.features.Scalar(np.float32), [0.5, 2.5, -1], ('target',), [[0.5], [2.5], [-1]]),
        ],
    )
    def test_targets_of_other_tasks(
        self, task: str, feature: Any, values: Any, names: tuple[str, ...], expected: Any, tmp_path: pathlib.Path, rng
    ) -> None:
        hot = [[True, False, True], [False, False, False], [False, True, False]]
        examples = [
            {'image': e['image'], 'target': v, 'index': 7}
            for e, v in zip(make_examples(rng, 3), values or hot, strict=True)
        ]
        prepare(tmp_path, {'image': IMAGE, 'target': feature, 'index': np.int64}, train=examples, test=examples)
        dataset = load_dataset('toy', task=task, data_dir=str(tmp_path))
        assert dataset.class_names == names
        np.testing.assert_array_equal(dataset.test.labels, hot if expected is None else expected)

    def test_no_feature_for_the_task(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=make_examples(rng, 3), test=make_examples(rng, 3))
        for task, expected in (('binary', 'one label of two classes'), ('regression', 'one float or vector of floats')):
            message = error_of('toy', task=task, data_dir=str(tmp_path))
            assert message.startswith(f"'toy': expected one uint8 image with 1 or 3 channels and {expected}")

    @pytest.mark.parametrize(
        ('features', 'found'),
        [
            ({'image': tfds.features.Tensor(shape=(5, 4, 3), dtype=np.float32), 'label': LABEL}, 'dtype=float32)'),
            (
                {'image': tfds.features.Tensor(shape=(5, 4, 2), dtype=np.uint8), 'label': LABEL},
                'image: Tensor(shape=(5, 4, 2)',
            ),
            ({'a': IMAGE, 'b': IMAGE, 'label': LABEL}, 'a: Tensor(shape=(5, 4, 3), dtype=uint8), b: Tensor'),
            ({'image': IMAGE, 'a': LABEL, 'b': LABEL}, 'num_classes=3)'),
            ({'image': IMAGE, 'label': tfds.features.Scalar(np.float32)}, 'label: Scalar(shape=(), dtype=float32)'),
        ],
    )
    def test_features(self, features: dict[str, Any], found: str, tmp_path: pathlib.Path) -> None:
        example = {key: np.zeros(feature.shape, feature.np_dtype) for key, feature in features.items()}
        prepare(tmp_path, features, train=[example], test=[example])
        message = error_of('toy', data_dir=str(tmp_path))
        assert message.startswith("'toy': expected one uint8 image with 1 or 3 channels and one integer label")
        assert found in message

    def test_splits(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, other=make_examples(rng, 3), extra=make_examples(rng, 3))
        message = error_of('toy', data_dir=str(tmp_path))
        assert message == "'toy': expected a split train with labels, found extra, other"

    def test_without_a_test_split_every_fifth_is_held_out(self, tmp_path: pathlib.Path, rng: np.random.Generator):
        examples = make_examples(rng, 12)
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=examples)
        dataset = load_dataset('toy', data_dir=str(tmp_path))
        assert (len(dataset.train), len(dataset.test)) == (10, 2)
        found = {image.tobytes() for split in (dataset.train, dataset.test) for image in np.asarray(split.images)}
        assert found == {np.asarray(example['image']).tobytes() for example in examples}
        prepare(tmp_path / 'few', {'image': IMAGE, 'label': LABEL}, train=examples[:4])
        message = error_of('toy', data_dir=str(tmp_path / 'few'))
        assert message == "'toy': 4 training examples are too few to split"

    def test_labels_beyond_the_training_labels(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = make_examples(rng, 3)
        prepare(tmp_path, {'image': IMAGE, 'label': np.int64}, train=examples[:2], test=examples)
        assert error_of('toy', data_dir=str(tmp_path)) == "'toy', test: labels must be from 0 to 1, found 2"

    def test_too_large(self, tmp_path: pathlib.Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=make_examples(rng, 3), test=make_examples(rng, 2))
        monkeypatch.setattr(examples_module, 'MAX_BYTES', 5 * 60)
        assert len(load_dataset('toy', data_dir=str(tmp_path)).train) == 3
        monkeypatch.setattr(examples_module, 'MAX_BYTES', 5 * 60 - 1)
        assert '5 images of 5 x 4 x 3 do not fit in memory' in error_of('toy', data_dir=str(tmp_path))

    def test_parquet_can_be_read_too(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = make_examples(rng, 3)
        prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, 'parquet', train=examples, test=examples)
        assert_same(load_dataset('toy', data_dir=str(tmp_path)).train, examples)

    def test_other_format(self, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = make_examples(rng, 3)
        folder = prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=examples, test=examples)
        info = json.loads((folder / 'dataset_info.json').read_text())
        (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
        assert error_of('toy', data_dir=str(tmp_path)) == (
            f"'toy': {folder} has the format tfrecord, which needs TensorFlow;"
            ' delete it or choose another data_dir to prepare it as array_record'
        )

    @pytest.mark.parametrize('damage', ['missing', 'empty', 'truncated', 'text'])
    def test_damaged_files(self, damage: str, tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
        examples = make_examples(rng, 200)
        folder = prepare(tmp_path, {'image': IMAGE, 'label': LABEL}, train=examples, test=examples[:2])
        (file,) = folder.glob('*-train.*')
        content = file.read_bytes()
        file.unlink()
        if damage != 'missing':
            file.write_bytes({'empty': b'', 'truncated': content[: len(content) // 2], 'text': b'no'}[damage])
        assert error_of('toy', data_dir=str(tmp_path)).startswith(f"'toy': cannot read {folder} (")

    def test_damaged_image(self, tmp_path: pathlib.Path) -> None:
        examples = [{'image': b'no image', 'label': 0}]
        feature = tfds.features.Image(shape=(5, 4, 3))
        folder = prepare(tmp_path / 'small', {'image': feature, 'label': LABEL}, train=examples, test=examples)
        message = error_of('toy', data_dir=str(tmp_path / 'small'))
        assert message.startswith(f"'toy': cannot read {folder} (unknown image format)")
        prepare(tmp_path / 'any', {'image': tfds.features.Image(), 'label': LABEL}, train=examples, test=examples)
        assert error_of('toy', data_dir=str(tmp_path / 'any')) == "'toy': none of 1 images could be decoded"


class Registered(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder with code, unlike those of ``prepare``."""

    VERSION = tfds.core.Version('1.0.0')
    FEATURES: Mapping[str, Any] = {'image': IMAGE, 'label': LABEL}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {'train': self._generate_examples(4), 'test': self._generate_examples(3)}

    def _generate_examples(self, num: int) -> Any:
        yield from enumerate(make_examples(np.random.default_rng(0), num))


class NeedsEncoding(Registered):
    FEATURES: Mapping[str, Any] = {'image': tfds.features.Image(), 'label': LABEL}


class NeedsNetwork(Registered):
    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        dl_manager.download('http://127.0.0.1:9/images.zip')
        return {}


class NeedsFiles(Registered):
    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        pathlib.Path(dl_manager.download_dir, 'nothing').read_bytes()
        return {}


class NeedsCare(Registered):
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Ask for it.\nWait.'

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        (dl_manager.manual_dir / 'archive').read_bytes()
        return super()._split_generators(dl_manager)


class NeedsPackage(Registered):
    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        import a_package_that_nobody_has  # noqa: F401

        return {}


class HasNoImage(NeedsNetwork):
    FEATURES: Mapping[str, Any] = {'text': tfds.features.Text(), 'label': LABEL}


class Overtaken(Registered):
    overtaken = False

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if not Overtaken.overtaken:
            Overtaken.overtaken = True
            Overtaken(data_dir=self._data_dir_root).download_and_prepare(file_format='array_record')
        return super()._split_generators(dl_manager)


class TestPreparing:
    def test_once(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = load_dataset('overtaken', data_dir=str(tmp_path))  # another process finishes its files first
        assert Overtaken.overtaken
        monkeypatch.setattr(Overtaken, '_split_generators', None)
        again = load_dataset('overtaken', data_dir=str(tmp_path))
        np.testing.assert_array_equal(first.train.images, again.train.images)
        assert (len(again.train), len(again.test)) == (4, 3)

    @pytest.mark.parametrize('name', ['needs_encoding', 'cifar10', 'mnist:3.*.*'])
    def test_without_tensorflow(self, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, 'tensorflow', None)
        assert error_of(name, data_dir=str(tmp_path)).startswith(
            f"needs TensorFlow to prepare '{name}': pip install tensorflow"
            f' (training does not need it); prepared files are expected in {tmp_path}/'
        )

    def test_without_network(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tfds_source, 'DOWNLOAD_RETRIES', 0)
        monkeypatch.setenv('NO_PROXY', '127.0.0.1')
        message = error_of('needs_network', data_dir=str(tmp_path))
        assert message.startswith("'needs_network': TFDS could not download the dataset (")
        assert 'Connection refused' in message
        assert message.endswith(f'prepared files are expected in {tmp_path}/needs_network/1.0.0')

    @pytest.mark.parametrize(
        ('name', 'reason'),
        [('needs_files', "No such file or directory: '"), ('needs_package', "'a_package_that_nobody_has')")],
    )
    def test_other_errors_while_preparing(self, name: str, reason: str, tmp_path: pathlib.Path) -> None:
        message = error_of(name, data_dir=str(tmp_path))
        assert message.startswith(f"'{name}': TFDS could not prepare the dataset (")
        assert reason in message

    def test_manual_downloads(self, tmp_path: pathlib.Path) -> None:
        folder = tmp_path / 'downloads' / 'manual'
        message = (
            f'must be downloaded by hand: TFDS expects its files in {folder} (Ask for it. Wait.); --dataset=folder:DIR'
            ' trains on a folder of images'
        )
        assert error_of('needs_care', data_dir=str(tmp_path)) == f"'needs_care' {message}"
        assert not list(tmp_path.iterdir())
        folder.mkdir(parents=True)
        assert error_of('needs_care', data_dir=str(tmp_path)) == f"'needs_care' {message}"
        (folder / 'other').touch()
        found = error_of('needs_care', data_dir=str(tmp_path))
        assert found.startswith(
            "'needs_care': TFDS could not prepare the dataset ([Errno 2] No such file or directory: "
        )
        assert found.endswith(f'; it {message}')
        (folder / 'archive').touch()
        assert len(load_dataset('needs_care', data_dir=str(tmp_path)).train) == 4

    def test_imagenet_is_downloaded_by_hand(self, tmp_path: pathlib.Path) -> None:
        """The default of ImageNet's recipes."""
        message = error_of('imagenet2012', data_dir=str(tmp_path))
        assert message.startswith(
            f"'imagenet2012' must be downloaded by hand: TFDS expects its files in {tmp_path}/downloads/manual"
            ' (manual_dir should contain two files: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.'
        )
        assert message.endswith('; --dataset=folder:DIR trains on a folder of images')
        assert not list(tmp_path.iterdir())

    def test_nothing_is_downloaded_without_an_image(self, tmp_path: pathlib.Path) -> None:
        message = error_of('has_no_image', data_dir=str(tmp_path))
        assert message.startswith("'has_no_image': expected one uint8 image")
        assert not list(tmp_path.iterdir())

    def test_incomplete_folder(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / 'needs_network/1.0.0').mkdir(parents=True)
        message = f"'needs_network': {tmp_path}/needs_network/1.0.0 is incomplete; delete it to prepare it again"
        assert error_of('needs_network', data_dir=str(tmp_path)) == message


class TestNames:
    @pytest.mark.parametrize(
        ('name', 'near'),
        [
            ('cifar11', 'nearest known: cifar10, cifar100'),
            ('digit', 'nearest known: digits'),
            ('Sinthetic', 'nearest known: synthetic'),
            ('arrays', 'nearest known: arrays:DIR'),
            ('nothing_like_it', 'known: digits, '),
            ('files:/images', 'known: digits, '),
            ('nothing/like:1.0.0', 'known: digits, synthetic, arrays:DIR, folder:DIR, cifar10, '),
            ('not a name', 'known: digits, '),
            ('', 'known: digits, '),
        ],
    )
    def test_unknown(self, name: str, near: str, tmp_path: pathlib.Path) -> None:
        message = error_of(name, data_dir=str(tmp_path))
        assert message.startswith(f"unknown dataset '{name}'; {near}")
        assert message.endswith(f'; or a TFDS name (name/config:1.0.0) known to TFDS or prepared in {tmp_path}')

    @pytest.mark.parametrize(
        ('name', 'reason'), [('mnist/nope', 'BuilderConfig nope'), ('mnist:9.9.9', 'version 9.9.9')]
    )
    def test_unknown_config_and_version(self, name: str, reason: str, tmp_path: pathlib.Path) -> None:
        message = error_of(name, data_dir=str(tmp_path))
        assert message.startswith(f"'{name}': TFDS could not open the dataset (")
        assert reason in message

    def test_data_dir_is_a_file(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / 'file'
        path.touch()
        assert error_of('digits', data_dir=str(path)) == f"data_dir='{path}' must be a folder, not a file"

    def test_home_in_data_dir(self, digits_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv('HOME', digits_dir)
        assert len(load_dataset('digits', data_dir='~').test) == 360
