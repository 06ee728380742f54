"""Names of the tensors in PyTorch files; ``test_files.py`` reads whole files."""

from resnet_jax.weights.torch_files import named_tensors
from resnet_jax.weights.torch_tensors import Inert, Storage, TensorRecord

A = TensorRecord(Storage('float32', '0', 6), 'float32', 0, (6,), (1,))


def module(**parts):
    made = Inert()
    made.content = {f'_{name}': value for name, value in parts.items()}
    return made


def test_names_are_those_of_a_state_dict():
    network = module(parameters={'a': A}, buffers={'b': A}, modules={'0': module(parameters={'c': A, 'd': None})})
    assert list(named_tensors(network)) == ['a', 'b', '0.c']
    saved = {'epoch': 3, 'state_dict': {'module.a': A, 'n': {'b': A}}, 'list': [A], '_modules': {'x': A}}
    assert list(named_tensors(saved)) == ['state_dict.module.a', 'state_dict.n.b', '_modules.x']
    assert named_tensors([A]) == named_tensors(A) == named_tensors(Inert()) == {}


def test_the_same_content_is_named_once():
    """Otherwise a small file could have more names than any memory holds."""
    shared = {'a': A}
    assert list(named_tensors({'x': shared, 'y': shared, 'z': {'a': A}})) == ['x.a', 'z.a']
    itself = {'a': A}
    itself['self'] = itself
    assert list(named_tensors(itself)) == ['a']
    doubled = {'a': A}
    for _ in range(30):
        doubled = {'l': doubled, 'r': doubled}
    assert list(named_tensors(doubled)) == ['l.' * 30 + 'a']


def test_long_and_deep_names_are_left_out():
    deep = {'a': A}
    for _ in range(60):
        deep = {'d': deep}
    assert list(named_tensors({'a': A, 'deep': deep, 'n' * 300: A})) == ['a']
