"""Suggestions for unknown names."""

from resnet_jax.errors import nearest


def test_similar_names_are_suggested_in_any_case_else_all():
    known = ('cifar10', 'cifar100', 'MNIST', 'synthetic')
    assert nearest('cifar11', known) == 'nearest known: cifar10, cifar100'
    assert nearest('mnst', known) == 'nearest known: MNIST'
    assert nearest('', known) == 'known: cifar10, cifar100, MNIST, synthetic'
    assert nearest('?', [f'name{number}' for number in range(100)]).endswith(' …')
