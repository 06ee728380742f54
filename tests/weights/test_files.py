"""Weights files: all formats give the same arrays, and damaged or malicious files an InputError."""

import io
import json
import pickle
import resource
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors

from resnet_jax import InputError
from resnet_jax.weights.files import TensorHeader, read_tensors, write_safetensors

# A writer of PyTorch files without PyTorch: its pickles refer to the same names.


class Name:
    """A class or function of another library that the pickle refers to."""

    def __init__(self, module, name):
        self.line = f'c{module}\n{name}\n'.encode()

    def __call__(self):
        raise AssertionError('only its name is used')


class Store:
    """A storage: flat values under a key."""

    def __init__(self, values, kind, numel=None):
        self.values, self.kind = values, Name('torch', kind)
        self.numel = values.size if numel is None else numel
        self.key = None


class Tensor:
    def __init__(self, store, shape, strides, offset=0, function='_rebuild_tensor_v2'):
        self.parts = (store, offset, shape, strides)
        self.function = function

    def __reduce__(self):
        more = () if self.function == '_rebuild_tensor' else (False, Empty())
        return Name('torch._utils', self.function), (*self.parts, *more)


class Empty:
    def __reduce__(self):
        return Name('collections', 'OrderedDict'), ()


class Called:
    """The result of a call of the function with this name."""

    def __init__(self, module, name, *args):
        self.reduced = Name(module, name), args

    def __reduce__(self):
        return self.reduced


class Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch | {Name: lambda self, name: self.write(name.line)}

    def __init__(self, file, view):
        super().__init__(file, 2)
        self.stores, self.view = {}, view

    def persistent_id(self, value):
        if not isinstance(value, Store):
            return None
        if value.key is None:
            value.key = str(len(self.stores))
        self.stores[value.key] = value
        return ('storage', value.kind, value.key, 'cuda:0', value.numel, *self.view)


def tensor(values, kind='FloatStorage', **more):
    """A contiguous tensor with its own storage."""
    values = np.asarray(values)
    strides = tuple(stride // values.itemsize for stride in np.empty(values.shape, values.dtype).strides)
    return Tensor(Store(values.ravel(), kind), values.shape, strides, **more)


def pickled(content, view=()):
    file = io.BytesIO()
    pickler = Pickler(file, view)
    pickler.dump(content)
    return file.getvalue(), pickler.stores


def zipped(content, byteorder='little', compression=zipfile.ZIP_STORED, folder='archive/'):
    data, stores = pickled(content)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        archive.writestr(f'{folder}data.pkl', data)
        archive.writestr(f'{folder}byteorder', byteorder)
        for key, store in stores.items():
            values = store.values if byteorder == 'little' else store.values.byteswap()
            archive.writestr(f'{folder}data/{key}', values.tobytes())
        archive.writestr(f'{folder}version', '3\n')
    return file.getvalue()


def legacy(content):
    data, stores = pickled(content, view=(None,))
    start = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})]
    keys = sorted(stores)
    values = [struct.pack('<q', stores[key].values.size) + stores[key].values.tobytes() for key in keys]
    return b''.join([*start, data, pickle.dumps(keys, 2), *values])


def safe(tensors, header=None, length=None, **more):
    """A safetensors file of arrays, or with a given header."""
    data = b''.join(value.tobytes() for value in tensors.values())
    entries, at = dict(more), 0
    for name, value in tensors.items():
        kind = 'BF16' if value.dtype == ml_dtypes.bfloat16 else value.dtype.kind.upper() + str(8 * value.itemsize)
        entries[name] = {'dtype': kind, 'shape': value.shape, 'data_offsets': (at, at + value.nbytes)}
        at += value.nbytes
    header = json.dumps(entries).encode() if header is None else header
    return struct.pack('<Q', len(header) if length is None else length) + header + data


def npz(tensors, save=np.savez):
    file = io.BytesIO()
    save(file, **tensors)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads a file of the given bytes."""

    def read_bytes(data, **more):
        path = tmp_path / 'weights.file'
        path.write_bytes(data)
        return read_tensors(path, **more)

    return read_bytes


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


F32 = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
TYPES = {
    'FloatStorage': F32,
    'DoubleStorage': F32.astype(np.float64) + 1e-12,
    'HalfStorage': F32.astype(np.float16),
    'BFloat16Storage': (F32 * 1.01).astype(ml_dtypes.bfloat16),
    'LongStorage': np.array([-1, 2**40]),
    'IntStorage': np.array([-7], np.int32),
    'ShortStorage': np.array([-7], np.int16),
    'CharStorage': np.array([-7], np.int8),
    'ByteStorage': np.array([250], np.uint8),
    'BoolStorage': np.array([True, False]),
    'ComplexFloatStorage': np.array([1 + 2j], np.complex64),
}


def as_result(value):
    return value.astype(np.float32) if value.dtype.kind == 'f' or value.dtype == ml_dtypes.bfloat16 else value


@pytest.mark.parametrize('write', [zipped, legacy])
@pytest.mark.parametrize('kind', TYPES)
def test_types_of_pytorch(read, write, kind):
    data = write({'a': tensor(TYPES[kind], kind), 'b': tensor(TYPES[kind][:0], kind)})
    found = read(data)
    assert_same(found, {'a': as_result(TYPES[kind]), 'b': as_result(TYPES[kind][:0])})
    headers = {name: TensorHeader(value.shape, value.dtype) for name, value in found.items()}
    assert read(data, headers_only=True) == headers
    if write is zipped:
        assert_same(read(zipped({'a': tensor(TYPES[kind], kind)}, 'big')), {'a': as_result(TYPES[kind])})


@pytest.mark.parametrize('kind', [kind for kind in TYPES if kind not in ('BoolStorage', 'ComplexFloatStorage')])
def test_types_of_safetensors(read, kind):
    data = safe({'a': TYPES[kind], 'b': TYPES[kind].reshape(-1)[:1].reshape(())})
    found = read(data)
    assert_same(found, {'a': as_result(TYPES[kind]), 'b': as_result(TYPES[kind]).reshape(-1)[0][...]})
    headers = {name: TensorHeader(value.shape, value.dtype) for name, value in found.items()}
    assert read(data, headers_only=True) == headers


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_types_of_numpy(read, save):
    arrays = {kind: value for kind, value in TYPES.items() if value.dtype != ml_dtypes.bfloat16}
    arrays |= {'columns': np.asfortranarray(F32), 'swapped': F32.astype('>f4'), '0': F32[0, 0][...], 'none': F32[:, :0]}
    data = npz(arrays, save)
    expected = {name: as_result(value) for name, value in arrays.items()}
    assert_same(read(data), expected)
    headers = {name: TensorHeader(value.shape, value.dtype) for name, value in expected.items()}
    assert read(data, headers_only=True) == headers


@pytest.mark.parametrize('write', [zipped, legacy])
def test_views(read, write):
    flat = np.arange(24, dtype=np.float32)
    store = Store(flat, 'FloatStorage')
    found = read(
        write(
            {
                'whole': Tensor(store, (4, 6), (6, 1)),
                'transposed': Tensor(store, (6, 4), (1, 6)),
                'later': Tensor(store, (2, 3), (6, 1), 7),
                'steps': Tensor(store, (3, 2), (2, 12), 1, '_rebuild_tensor'),
                'single': Tensor(store, (1, 2), (99, 1), 22),
                'scalar': Tensor(store, (), (), 23),
            }
        )
    )
    rows = flat.reshape(4, 6)
    expected = {
        'whole': rows,
        'transposed': rows.T,
        'later': rows[1:3, 1:4],
        'steps': flat.reshape(2, 6, 2)[:, :3, 1].T,
        'single': flat[None, 22:],
        'scalar': flat[23][...],
    }
    assert_same(found, expected)
    assert not any(value.flags.writeable for value in found.values())
    assert np.shares_memory(found['whole'], found['later'])


def test_values_beyond_float32_become_infinite(read):
    value = np.array([1e300, -1e300, np.nan, 1e-300])
    assert_same(read(zipped({'a': tensor(value, 'DoubleStorage')})), {'a': np.float32([np.inf, -np.inf, np.nan, 0])})


A, B = tensor(F32), tensor(F32[0])
FROM_TYPE = Name('torch._utils', '_rebuild_tensor_v2'), Name('torch', 'Tensor'), A.__reduce__()[1]
OTHERS = {
    'epoch': 3,
    'best_prec1': Called('numpy.core.multiarray', 'scalar', Called('numpy', 'dtype', 'f8', False, True), 'x'),
    'args': Called('argparse', 'Namespace'),
    'optimizer': {'state': {0: {'momentum_buffer': tensor(F32)}}, 'param_groups': [{'lr': 0.1, 'params': [0, 1]}]},
    'loss': tensor(F32[0]),
}


@pytest.mark.parametrize('write', [zipped, legacy])
@pytest.mark.parametrize(
    'content',
    [
        {'a': A, 'b': B},
        {'a': A, 'n': 5, 'b': B},
        {'a': Called('torch._utils', '_rebuild_parameter', A, True, Empty()), 'b': B},
        {'a': Called('torch._tensor', '_rebuild_from_type_v2', *FROM_TYPE, {'tag': 'x'}), 'b': B},
        {'a': A, 'b': Tensor(Store(F32[0], 'FloatStorage'), (3,), (1,)), 'same': {}},
    ],
)
def test_named_tensors_are_read(read, write, content):
    assert_same(read(write(content)), {'a': F32, 'b': F32[0]})


@pytest.mark.parametrize('write', [zipped, legacy])
def test_keys_of_nested_dicts_are_parts_of_names(read, write):
    content = {'state_dict': {'module.a': A, 'n': {'b': B}}, 'ema': {'module.a': B}} | OTHERS
    expected = {'state_dict.module.a': F32, 'state_dict.n.b': F32[0], 'ema.module.a': F32[0], 'loss': F32[0]}
    assert_same(read(write(content)), expected)


class Stand:
    """An object of an unknown class with attributes, or with items if it is a mapping."""

    def __init__(self, module, name, attributes, items=None):
        self.reduced = Name(module, name), (), attributes, None, items

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize('write', [zipped, legacy])
def test_tensors_beside_unknown_objects_are_read(read, write):
    """With a warning that names them, unless they are modules of a network, whose tensors are read."""
    parts = {'_parameters': {'a': A}, '_buffers': {'b': B}, '_modules': {'0': Stand('torch.nn', 'X', {'a': B})}}
    itself = Stand('mine', 'Node', {'tensor': A})
    itself.reduced[2]['parent'] = itself
    content = {
        'scheduler': {'lr_lambdas': [None], 'f': Called('builtins', 'getattr', 'x', 'y')},
        'path': Called('pathlib', 'PosixPath', 'runs', 'x'),
        'config': Stand('omegaconf.dictconfig', 'DictConfig', {'_content': {'lr': 0.1}}),
        'network': Stand('torch.nn.modules.container', 'Sequential', parts | {'training': True}),
        'ordered': Stand('mine', 'StateDict', None, iter([('a', A)])),
        'node': itself,
    }
    expected = {'network.a': F32, 'network.b': F32[0], 'network.0.a': F32[0], 'ordered.a': F32, 'node.tensor': F32}
    names = 'builtins.getattr, pathlib.PosixPath, omegaconf.dictconfig.DictConfig and 3 more'
    with pytest.warns(UserWarning, match=f'weights.file refers to {names}: only its tensors are read$'):
        assert_same(read(write(content)), expected)


def test_expanded_tensors(read):
    store = Store(F32.ravel(), 'FloatStorage')
    content = {
        'a': Tensor(store, (4, 2, 3), (0, 3, 1)),
        'b': Tensor(store, (5,), (0,), 2),
        'c': Tensor(store, (2, 2), (1, 1)),
    }
    expected = {'a': np.broadcast_to(F32, (4, 2, 3)), 'b': np.full(5, F32[0, 2]), 'c': [[-2.5, -1.5], [-1.5, -0.5]]}
    assert_same(read(zipped(content)), {name: np.asarray(value, np.float32) for name, value in expected.items()})


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'is not a safetensors, PyTorch'),
        (b'hello world', 'is not a safetensors'),
        (pickle.dumps([1], 2), 'is a pickle, but not of torch.save'),
        (b'\x80\x02cposix\nsystem\nX\1\0\0\0a\x85R.', 'is a pickle, but not of torch.save'),
        (zipped([A]), 'has no named tensors'),
        (zipped({'a': 1}), 'has no named tensors'),
        (
            zipped({'a': A}, compression=zipfile.ZIP_DEFLATED),
            'entry archive/data.pkl is compressed; PyTorch compresses only code',
        ),
        (zipped({'a': A}, 'middle'), 'byte order'),
        (zipped({'a': Called('os', 'system', 'true')}), 'has no named tensors; it refers to os.system'),
        (legacy({'a': Called('mine', 'Linear')}), 'has no named tensors; it refers to mine.Linear'),
        (zipped({'a': Tensor(Store(F32.ravel(), 'FloatStorage', 7), (7,), (1,))}), 'has 24 bytes instead of 28'),
        (zipped({'a': Tensor(Store(F32.ravel(), 'FloatStorage', 5), (5,), (1,))}), 'has 24 bytes instead of 20'),
        (legacy({'a': Tensor(Store(F32.ravel(), 'FloatStorage', 7), (7,), (1,))}), 'does not have 7 elements'),
        (legacy({'a': A})[:-1], 'does not have 6 elements'),
        (zipped({'a': Tensor(Store(F32.ravel(), 'FloatStorage'), (2**29,), (0,))}), 'repeats the 6 elements'),
        (zipped({'a': A})[:-30], 'is damaged: File is not a zip file'),
        (npz({'a': np.array([None])}), r'unsupported dtype \(object\)'),
        (npz({'a': np.array(['x'])}), r'unsupported dtype \(<U1\)'),
        (npz({}), 'has no named tensors'),
        (safe({}), 'has no named tensors'),
        (safe({'a': F32})[:-1], 'is damaged: Error while deserializing header'),
        (safe({}, b'{"a":1}'), 'is damaged: Error while deserializing header'),
        (safe({}, b'{' + b'"a":{' * 9999), 'is damaged: Error while deserializing header'),
        (safe({}, b'{}', 2**62), 'is damaged: its header is longer'),
        (
            safe({}, a={'dtype': 'F8_E4M3', 'shape': [0], 'data_offsets': [0, 0]}),
            r'the tensor a of an unsupported dtype \(F8_E4M3\)',
        ),
        (safe({}, a={'dtype': 'F32', 'shape': [0, 2**60], 'data_offsets': [0, 0]}), 'dtype .* or shape'),
        (
            safe({}, a={'dtype': 'F32', 'shape': [1] * 70, 'data_offsets': [0, 4]}) + b'abcd',
            'dtype .* or shape',
        ),
    ],
)
def test_errors_are_one_line_with_the_path(read, data, message):
    with pytest.raises(InputError, match=rf'^\S+weights.file .*{message}') as caught:
        read(data)
    assert '\n' not in str(caught.value)
    with pytest.raises(InputError, match=r'^\S+weights.file '):
        read(data, headers_only=True)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r'none.pth does not exist$'):
        read_tensors(tmp_path / 'none.pth')
    with pytest.raises(InputError, match=r'is a folder, not a file$'):
        read_tensors(str(tmp_path))


def test_one_storage_read_as_two_types_is_refused(read):
    untyped = Store(F32.ravel().view(np.uint8), 'UntypedStorage')

    def view(dtype, count):
        parts = untyped, 0, (count,), (1,), False, Empty(), Name('torch', dtype)
        return Called('torch._utils', '_rebuild_tensor_v3', *parts)

    assert_same(read(zipped({'a': view('float32', 6)})), {'a': F32.ravel()})
    with pytest.raises(InputError, match='b reads as uint16 what another tensor reads as float32'):
        read(zipped({'a': view('float32', 6), 'b': view('uint16', 12)}))
    with pytest.raises(InputError, match='beyond its storage of 6 elements'):
        read(zipped({'a': view('float32', 7)}))


def test_the_same_network_in_two_files(reference_data):
    """Files trained by another project."""
    folder = reference_data / 'akamaster'
    found, expected = (read_tensors(folder / name) for name in ('resnet20-12fca82f.th', 'resnet20.safetensors'))
    assert len(found) == 97
    assert_same(found, {name: expected[name.removeprefix('state_dict.module.')] for name in found})


def test_headers_of_a_large_file_are_quick(tmp_path):
    path = tmp_path / 'large.safetensors'
    header = json.dumps({'a': {'dtype': 'BF16', 'shape': [2**16, 2**17], 'data_offsets': [0, 2**34]}}).encode()
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(header)) + header)
        file.truncate(8 + len(header) + 2**34)
    start = time.perf_counter()
    assert read_tensors(path, headers_only=True) == {'a': TensorHeader((2**16, 2**17), np.dtype(np.float32))}
    assert time.perf_counter() - start < 1


def test_written_files_can_be_read(tmp_path):
    path = tmp_path / 'new.safetensors'
    tensors = {'t': F32.T, 's': F32[0, 0], 'i': np.arange(3), 'b': np.array([True]), 'e': F32[:0]}
    write_safetensors(path, tensors, {'arch': 'resnet20'})
    found = read_tensors(path)
    assert_same(found, {name: np.asarray(tensors[name]) for name in found})
    assert found.keys() == tensors.keys()
    with safetensors.safe_open(path, framework='numpy') as content:
        assert content.metadata() == {'arch': 'resnet20'}


@pytest.mark.parametrize(
    ('tensors', 'metadata'), [({'a': F32, 'b': np.array([None])}, None), ({'a': F32}, {'epoch': 5}), ({'': 'x'}, None)]
)
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, tensors, metadata):
    path = tmp_path / 'new.safetensors'
    path.write_bytes(b'old')
    with pytest.raises(InputError, match=r'cannot write .*new.safetensors: '):
        write_safetensors(path, tensors, metadata)
    assert [file.name for file in tmp_path.iterdir()] == ['new.safetensors']
    assert path.read_bytes() == b'old'
    with pytest.raises(InputError, match=r'cannot write .*: '):
        write_safetensors(tmp_path / 'none' / 'new.safetensors', {'a': F32})
    with pytest.raises(InputError, match=r'cannot write .*: '):
        write_safetensors(path / 'new.safetensors', {'a': F32})


def directory(count):
    """A zip file of only a directory, whose entries do not exist."""
    entry = b'PK\1\2' + bytes(24) + struct.pack('<H', 8) + bytes(16)
    entries = b''.join(entry + b'%08d' % number for number in range(count))
    return b'PK\3\4' + entries + b'PK\5\6' + struct.pack('<4H2IH', 0, 0, 0, 0, len(entries), 4, 0)


def overlapping():
    """A zip file whose 500 entries share the same megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data/0', bytes(10**6))
        first = archive.infolist()[0]
        for number in range(1, 500):
            entry = zipfile.ZipInfo(f'archive/data/{number}')
            entry.header_offset, entry.file_size, entry.compress_size, entry.CRC = 0, 10**6, 10**6, first.CRC
            archive.filelist.append(entry)
        archive.writestr('archive/data.pkl', pickled({'a': A})[0])
    return file.getvalue()


def npy(header, data=b''):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + data)
    return file.getvalue()


BOMBS = {
    'directory': lambda: directory(100_000),
    'overlapping entries': overlapping,
    'packed pickle': lambda: zipped({'a': tensor(np.zeros(5_000_000, np.float32))}, compression=zipfile.ZIP_DEFLATED),
    'packed array': lambda: npz({'a': np.zeros(20_000_000, np.float32)}, np.savez_compressed),
    'shape': lambda: npy(b"{'descr':'<f4','fortran_order':False,'shape':(1000000,1000000)}", b'abcd'),
    'negative shape': lambda: npy(b"{'descr':'<f4','fortran_order':False,'shape':(-1,-1)}", b'abcd'),
    'objects': lambda: npy(b"{'descr':'|O','fortran_order':False,'shape':()}", pickle.dumps(0)),
    'header of calls': lambda: npy(b'(' * 9000),
    'long header': lambda: npy(b"{'descr':'<f4'," + b' ' * 60_000 + b'}'),
    'names': lambda: safe({}, b'{' + b','.join(EMPTY % number for number in range(99_999)) + b'}'),
    'shared storage': lambda: zipped({str(n): Tensor(SHARED, (1_000_000,), (1,)) for n in range(1000)}),
    'empty containers': lambda: zipped([{} for _ in range(200_000)]),
}
EMPTY = b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
SHARED = Store(np.zeros(1_000_000, np.float16), 'HalfStorage')


def peak_of_reading(path):
    """The peak memory of NumPy and Python; the result, or None for an InputError; the seconds."""
    tracemalloc.start()
    start = time.perf_counter()
    found, message = None, ''
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # a damaged name is an unknown one
            found = read_tensors(path)
    except InputError as error:
        message = str(error)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None or message.startswith(f'{path} ')
    assert message.isprintable()
    return peak, found, seconds


@pytest.mark.parametrize('kind', BOMBS)
def test_malicious_files_need_little_memory_and_time(tmp_path, kind):
    path = tmp_path / 'bomb'
    path.write_bytes(BOMBS[kind]())
    peak, found, seconds = peak_of_reading(path)
    assert (found is not None) == (kind == 'shared storage')
    assert peak < 4 * path.stat().st_size + 16e6
    assert seconds < 5


def seeds():
    """A small file of each format with several tensors, and its content."""
    store = Store(F32.ravel(), 'FloatStorage')
    content = {
        'layer.a': Tensor(store, (3, 2), (1, 3)),
        'layer.b': tensor(TYPES['HalfStorage'], 'HalfStorage'),
        'n': tensor(np.array([7]), 'LongStorage'),
    }
    arrays = {'layer.a': F32, 'layer.b': TYPES['HalfStorage'], 'n': np.array([7])}
    return {
        'zip': zipped({'epoch': 1, 'state_dict': content}),
        'legacy': legacy({'epoch': 1, 'state_dict': content}),
        'safetensors': safe(arrays),
        'npz': npz(arrays),
        'packed npz': npz(arrays, np.savez_compressed),
    }


def mutated(data, others, rng):
    """The file after a few random changes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
        kind = rng.integers(8)
        if kind < 3 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 3 and at < len(data):
            data[at] = int(rng.integers(256))
        elif kind == 4:
            data[at : at + length] = rng.bytes(length) if rng.integers(2) else b'\xff' * length
        elif kind == 5:
            data[at:] = b'' if rng.integers(2) else data[at + length :]
        elif kind == 6:
            data[at:at] = rng.bytes(length)
        else:
            other = others[int(rng.integers(len(others)))]
            begin = int(rng.integers(len(other)))
            data[at : at + int(rng.integers(length))] = other[begin : begin + 5 * length]
    return bytes(data)


def check_mutants(path, count, seed):
    rng = np.random.default_rng(seed)
    files = seeds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    readable = 0
    for number in range(count):
        kind = list(files)[number % len(files)]
        data = mutated(files[kind], list(files.values()), rng)
        path.write_bytes(data)
        peak, found, seconds = peak_of_reading(path)
        assert peak < 4 * len(data) + 4e6, (seed, number)
        assert seconds < 1, (seed, number)
        if found is not None:
            readable += 1
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                headers = read_tensors(path, headers_only=True)
            assert headers == {name: TensorHeader(value.shape, value.dtype) for name, value in found.items()}
            assert sum(value.size for value in found.values()) <= 8 * len(data), (seed, number)
            assert all(value.tobytes() is not None for value in found.values())
    kilobyte = 1024 if sys.platform == 'darwin' else 1  # macOS counts bytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 * kilobyte
    return readable


def test_damaged_files_are_read_or_refused(tmp_path):
    assert 0 < check_mutants(tmp_path / 'mutant', 400, 0) < 300


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 6))
def test_many_damaged_files_are_read_or_refused(tmp_path, seed):
    check_mutants(tmp_path / 'mutant', 2000, seed)


def test_files_written_by_pytorch(tmp_path):
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 6)).astype(np.float32)
    whole = torch.from_numpy(values)
    expected = {
        'float': whole,
        'transposed': whole.t(),
        'part': whole[1:3, 2:4],
        'parameter': torch.nn.Parameter(whole[0].clone()),
        'half': whole.half(),
        'bfloat16': whole.bfloat16(),
        'double': whole.double(),
        'long': torch.arange(5),
        'bool': whole > 0,
        'scalar': torch.tensor(3),
        'none': torch.zeros(0, 3),
        'last': whole.clone()
        .contiguous(memory_format=torch.contiguous_format)[None, :, :, None]
        .to(memory_format=torch.channels_last),
    }
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    training = {'epoch': 1, 'best_prec1': np.float64(3), 'optimizer': optimizer.state_dict()}
    for number, new in enumerate((True, False)):
        path = tmp_path / f'{number}.pth'
        torch.save(expected, path, _use_new_zipfile_serialization=new)
        found = read_tensors(path)
        arrays = {name: value.detach() for name, value in expected.items()}
        arrays = {name: (v.float() if v.dtype.is_floating_point else v).numpy() for name, v in arrays.items()}
        assert_same(found, arrays)
        torch.save(training | {'state_dict': network.state_dict()}, path, _use_new_zipfile_serialization=new)
        state = {name: value.numpy() for name, value in network.state_dict().items()}
        assert_same(read_tensors(path), {f'state_dict.{name}': value for name, value in state.items()})
        torch.save(network, path, _use_new_zipfile_serialization=new)  # the module itself
        assert_same(read_tensors(path), state)
        if new:
            unsigned = {'a': torch.arange(3).to(torch.uint16)}
            torch.save(unsigned, path)
            assert_same(read_tensors(path), {'a': np.arange(3, dtype=np.uint16)})


@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
def test_torchscript_archives_of_pytorch(tmp_path):
    """Their tensors alone; their code is compressed, and users may add files of any name."""
    torch = pytest.importorskip('torch')
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential())
    network[2].add_module('head', torch.nn.Linear(4, 2))
    path = tmp_path / 'network.pt'
    for half in (False, True):
        script = torch.jit.script(network.half() if half else network)
        torch.jit.save(script, path, _extra_files={'data.pkl': 'x', 'below/data.pkl': 'y', 'README': 'z'})
        with zipfile.ZipFile(path) as archive:
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
        state = {
            name: value.float() if half and value.is_floating_point() else value
            for name, value in network.state_dict().items()
        }
        assert_same(read_tensors(path), {name: value.numpy() for name, value in state.items()})
        assert set(read_tensors(path, headers_only=True)) == set(state)
