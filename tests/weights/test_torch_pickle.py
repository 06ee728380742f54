"""The restricted unpickler: its results, and that it executes no code."""

import contextlib
import io
import pickle
import struct
import tracemalloc

import pytest

from resnet_jax import InputError
from resnet_jax.weights.torch_pickle import Unpickler
from resnet_jax.weights.torch_tensors import Inert, Storage, TensorRecord

TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'
DICT = b'ccollections\nOrderedDict\n'


def load(data, most_steps=100_000):
    return Unpickler(io.BytesIO(data), most_steps).load()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def storage(kind=b'ctorch\nFloatStorage\n', key='0', numel=6):
    return b'(' + text('storage') + kind + text(key) + text('cpu') + b'J' + struct.pack('<i', numel) + b'tQ'


def numbers(*values):
    return b'(' + b''.join(b'\x8a\x08' + struct.pack('<q', value) for value in values) + b't'


def tensor(shape, strides, offset=0, of=None):
    place = b'\x8a\x08' + struct.pack('<q', offset)
    return TENSOR + b'(' + (of or storage()) + place + numbers(*shape) + numbers(*strides) + b'\x89' + DICT + b')RtR'


VALUES = {
    'constants': [None, True, False],
    'integers': [0, -5, 255, 300, 70_000, 2**31, -(2**80), 2**3000],
    'others': [0.5, 'a', 'ä\ud800', 'x' * 300],
    'containers': [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, [2] * 1200, {'a': {'b': [1]}}],
}


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('kind', VALUES)
def test_plain_values_equal_python(kind, protocol):
    value = {'a': VALUES[kind], 'again': (VALUES[kind], VALUES[kind])}
    assert load(pickle.dumps(value, protocol)) == value


def test_bytes():
    value = [b'', b'x', b'x' * 300, bytearray(b'y')]
    assert load(pickle.dumps(value, 5)) == value


def test_only_string_keys_are_kept():
    assert load(pickle.dumps({'a': 1, 5: 2, 0.5: 3, None: 4, (1, (2, 3)): 5})) == {'a': 1}


def test_consecutive_pickles():
    unpickler = Unpickler(io.BytesIO(pickle.dumps([1]) + pickle.dumps('b')), 100)
    assert (unpickler.load(), unpickler.load()) == ([1], 'b')
    with pytest.raises(InputError, match='ends too early'):
        unpickler.load()


def test_tensors_become_records():
    record = load(tensor((2, 3), (3, 1)) + b'.')
    assert record == TensorRecord(Storage('float32', '0', 6), 'float32', 0, (2, 3), (3, 1))


def test_unknown_objects_hold_only_attributes_and_items():
    assert is_inert(load(pickle.dumps({1}, 2)))
    assert load(pickle.dumps({1}, 4)) == [1]
    assert load(b'cargparse\nNamespace\n)\x81}' + text('a') + b'K\x01sb.').content == {'a': 1}
    assert load(b'cmine\nDict\n)R(' + text('a') + b'K\x01K\x05K\x02u.').content == {'a': 1}
    assert is_inert(load(b'cmine\nf\n}' + text('a') + b'K\x01sb.'))  # the function itself has none
    assert load(DICT + b'(]]' + text('a') + b'aK\x01aatR.') == {'a': 1}  # written by Python 2


def is_inert(value):
    return isinstance(value, Inert) and value.content is None


def test_contradictory_storages_are_refused():
    other = storage(b'ctorch\nHalfStorage\n')
    with pytest.raises(InputError, match='two different descriptions'):
        load(b'(' + storage() + other + b't.')
    with pytest.raises(InputError, match='two different descriptions'):
        load(b'(' + storage() + storage(numel=7) + b't.')
    with pytest.raises(InputError, match='has no dtype, key or size'):
        load(storage(numel=-1) + b'.')


def command(marker):
    return text(f'touch {marker}')


RUNS = {
    'global': lambda m: b'cposix\nsystem\n' + command(m) + b'\x85R.',
    'stack global': lambda m: b'\x8c\x05posix\x8c\x06system\x93' + command(m) + b'\x85R.',
    'by way of the memo': lambda m: b'\x8c\x05posix\x940\x8c\x06system\x940h\x00h\x01\x93' + command(m) + b'\x85R.',
    'inst': lambda m: b'(' + command(m) + b'iposix\nsystem\n.',
    'obj': lambda m: b'(cposix\nsystem\n' + command(m) + b'o.',
    'newobj': lambda m: b'csubprocess\nPopen\n](' + text('/usr/bin/touch') + text(str(m)) + b'e\x85\x81.',
    'eval': lambda m: b'cbuiltins\neval\n' + text(f'open({str(m)!r}, "w").close()') + b'\x85R.',
    'getattr': lambda m: (
        b'cbuiltins\ngetattr\ncbuiltins\nopen\n' + text('__call__') + b'\x86R' + text(str(m)) + b'X\1\0\0\0w\x86R.'
    ),
    'dotted': lambda m: b'\x8c\x0bcollections\x8c\x13abc.sys.modules.get\x93' + text('os') + b'\x85R.',
}


@pytest.mark.parametrize('kind', RUNS)
@pytest.mark.parametrize('within', ['alone', 'state', 'persistent id', 'arguments', 'key'])
def test_no_payload_is_executed(tmp_path, kind, within):
    marker = tmp_path / 'marker'
    payload = RUNS[kind](marker)[:-1]
    data = (
        b'\x80\x04'
        + {
            'alone': payload + b'.',
            'state': b'cargparse\nNamespace\n)\x81' + payload + b'b.',
            'persistent id': storage(payload) + b'.',
            'arguments': TENSOR + b'(' + payload + b'tR.',
            'key': b'}' + payload + b'K\x01s.',
        }[within]
    )
    unpickler = Unpickler(io.BytesIO(data), 100_000)
    found = unpickler.load()
    assert {'state': is_named_inert, 'key': lambda value: value == {}}.get(within, is_inert)(found)
    assert any(name in unpickler.ignored for name in NAMES)
    assert not marker.exists()


def is_named_inert(value):
    """Whether a value is a stand-in with at most stand-ins as content."""
    return isinstance(value, Inert) and all(map(is_named_inert, (value.content or {}).values()))


NAMES = ('posix.system', 'subprocess.Popen', 'builtins.eval', 'builtins.getattr', 'collections.abc.sys.modules.get')


def test_results_of_unknown_functions_can_only_be_called_and_filled():
    """Chains of calls, attributes and items stay stand-ins, and never become tensors or strings."""
    call = b'cbuiltins\ngetattr\ncos\n_wrap_close\n' + text('__init__') + b'\x86R'  # getattr(os._wrap_close, …)
    assert is_inert(load(call + b')R' + text('x') + b'\x85R)\x81.'))
    assert is_inert(load(TENSOR + b'(' + call + b'K\x00)))tR.'))
    assert is_inert(load(b'ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nx\n' + text('id') + b'\x85}tR.'))
    storage_of_it = b'(' + text('storage') + call + text('0') + text('cpu') + b'K\x06tQ'
    assert is_inert(load(tensor((2,), (1,), of=storage_of_it) + b'.'))
    for data, message in ((call + b'K\x01R.', 'not a function'), (DICT + call + b'\x85R.', 'not made of pairs')):
        with pytest.raises(InputError, match=message):
            load(data)


def test_a_tensor_with_attributes_is_its_tensor():
    plain = tensor((2, 3), (3, 1))
    function, args = plain.split(b'(', 1)
    with_attributes = b'ctorch._tensor\n_rebuild_from_type_v2\n(' + function + b'cmine\nTensor\n(' + args[:-1]
    assert load(with_attributes + b'}' + text('tag') + b'K\x01stR.') == load(plain + b'.')


@pytest.mark.parametrize('kind', ['global', 'stack global', 'inst', 'obj', 'by way of the memo'])
def test_the_payloads_work_in_python(tmp_path, kind):
    """Otherwise, the test above would prove nothing."""
    pickle.loads(b'\x80\x04' + RUNS[kind](tmp_path / 'marker'))
    assert (tmp_path / 'marker').exists()


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        ('torch._utils', '_rebuild_tensor.__globals__'),
        ('torch._utils', 'x.__class__'),
        ('torch', 'FloatStorage.__reduce__'),
        ('torch', '_utils._rebuild_tensor_v2'),
        ('torch', 'load'),
        ('torch.storage', '_load_from_bytes'),
        ('torch.nn.modules.linear', 'Linear'),
        ('collections', 'OrderedDict.__init__'),
        ('collections', ''),
        ('', ''),
        ('builtins', 'dict.__class__'),
        ('builtins', 'object'),
        ('builtins', '__import__'),
        ('numpy', 'load'),
        ('numpy.testing._private.utils', 'runstring'),
        ('copyreg', '_reconstructor'),
        ('ev\x1b[31mil', 'x' * 5000),
        ('a\nb', 'c\rd'),
    ],
)
def test_names_outside_of_the_table_are_inert(module, name):
    unpickler = Unpickler(io.BytesIO(text(module) + text(name) + b'\x93)R.'), 100)
    assert is_inert(unpickler.load())
    (ignored,) = unpickler.ignored or ['']
    assert len(ignored) < 100
    assert ignored.isprintable()


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'ends too early'),
        (b'.', 'pops from an empty stack'),
        (b'K\x01K\x01R.', 'calls something that is not a function'),
        (DICT + b'K\x01R.', 'not a function'),
        (b'ctorch\nFloatStorage\n)R.', 'not a function'),
        (b'ctorch\nfloat32\n)\x81.', 'not a function'),
        (DICT + b'(K\x01tR.', 'not made of pairs'),
        (DICT + b'(]K\x01atR.', 'not made of pairs'),
        (DICT + b'0t.', 'has no operand'),
        (b'h\x07.', 'has no operand'),
        (b'\x86.', 'empty stack'),
        (b'}K\x01K\x02K\x03s0.', 'not a dictionary, or without values'),
        (b'}(K\x01u.', 'without values'),
        (b'K\x01K\x02a.', 'not a list'),
        (b'Ptext\n.', 'uses PERSID'),
        (b'\x82\x01.', 'uses EXT1'),
        (b'\x97.', 'uses NEXT_BUFFER'),
        (b'\xff.', 'no opcode ff'),
        (b'K\x01Q.', 'not the storage of a tensor'),
        (text('0') + b'Q.', 'not the storage of a tensor'),
        (b'(' + text('module') + b'NNNNtQ.', 'not the storage of a tensor'),
        (storage(b'K\x01') + b'.', 'has no dtype'),
        (storage()[:-2] + b'(tt' + b'Q.', 'view of a storage'),
        (TENSOR + b')R.', 'has no storage'),
        (TENSOR + b'(NNNNtR.', 'has no storage'),
        (b'ctorch._utils\n_rebuild_tensor_v3\n(' + storage() + b'NNNNNNtR.', 'has no dtype'),
        (TENSOR + b'(' + storage() + b'K\x00)))N}' + text('conj') + b'\x88stR.', 'conjugated'),
        (b'cposix', 'not terminated'),
        (b'X\x02\0\0\0\xff\xff.', 'an invalid string'),
        (b'K\x01\x8c\x01a\x93.', 'not a string'),
    ],
)
def test_damage_is_reported(data, message):
    with pytest.raises(InputError, match=message):
        load(data)


ROW = b'](' + b'K\x01K\x02\x86' * 1000 + b'e'
BOMBS = {
    'bytes': b'\x8e' + struct.pack('<Q', 2**40) + b'x.',
    'bytearray': b'\x96' + struct.pack('<Q', 2**40) + b'x.',
    'text': b'\x8d' + struct.pack('<Q', 2**62) + b'x.',
    'short text': b'X' + struct.pack('<I', 2**32 - 1) + b'x.',
    'integer': b'\x8b' + struct.pack('<i', 2**31 - 1) + b'x.',
    'frame': b'\x95' + struct.pack('<Q', 2**63) + b'N.',
    'memo': b'N' + b''.join(b'r' + struct.pack('<I', 2**32 - 1 - n) for n in range(100)) + b'.',
    'depth of lists': b']' * 50_000 + b'a' * 49_000 + b'.',
    'depth of tuples': b')' + b'\x85' * 90_000 + b'.',
    'depth of marks': b'(' * 90_000 + b't' * 90_000 + b'.',
    'doubling': b')' + b'2\x86' * 1000 + b'.',
    'doubled key': b'})' + b'2\x86' * 1000 + b'Ns.',
    'doubled shape': TENSOR + b'(' + storage() + b'K\x00)' + b'2\x86' * 1000 + b')NNtR.',
    'doubled arguments': TENSOR + b'(' + storage() + b'K\x00)))' + b')' + b'2\x86' * 1000 + b'tR.',
    'copies': ROW + b'q\x00(' + (DICT + b'h\x00\x85R') * 3000 + b't.',
    'dictionaries': b'(' + b'}' * 2_000_000 + b't.',
    'strides': TENSOR
    + b'('
    + storage()
    + b'K\x00K\x01\x85\x8b'
    + struct.pack('<i', 9999)
    + b'\x7f' * 9999
    + b'\x85NNtR.',
    'elements': storage()[:-6] + b'\x8b' + struct.pack('<i', 9999) + b'\x7f' * 9999 + b'tQ.',
    'collisions': b'}('
    + b''.join(b'\x8a\x0a' + ((2**61 - 1) * n).to_bytes(10, 'little') + b'N' for n in range(8000))
    + b'u.',
}


@pytest.mark.parametrize('kind', BOMBS)
def test_malicious_pickles_need_little_memory(kind):
    file = io.BytesIO(BOMBS[kind])
    tracemalloc.start()
    with contextlib.suppress(InputError):
        Unpickler(file, 100_000).load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6
