"""The names of ImageNet's classes."""

from resnet_jax.data.imagenet_names import imagenet_names, imagenet_wordnet_ids


def test_names_and_ids_have_the_same_order():
    names, ids = imagenet_names(), imagenet_wordnet_ids()
    assert len(names) == len(ids) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)  # the numbering of folders and TFDS
    assert (names[0], ids[0]) == ('tench', 'n01440764')
    assert (names[207], ids[207]) == ('golden retriever', 'n02099601')
    assert names[999] == 'toilet tissue'
