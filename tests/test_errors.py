"""What a message suggests for an unknown name."""

from resnet_jax.errors import nearest


def test_near_names_in_any_case_or_all():
    known = ('cifar10', 'cifar100', 'MNIST', 'synthetic')
    assert nearest('cifar11', known) == 'nearest known: cifar10, cifar100'
    assert nearest('mnst', known) == 'nearest known: MNIST'
    assert nearest('', known) == 'known: cifar10, cifar100, MNIST, synthetic'
    assert nearest('?', [f'name{number}' for number in range(100)]).endswith(' …')
