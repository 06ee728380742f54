"""Names, pages and pictures of the documentation site. Links are checked by Sphinx when it builds the site."""

import ast
import importlib
import re

import pytest
from PIL import Image

import resnet_jax


@pytest.fixture(scope='module')
def documented(root):
    """Qualified names that the API reference documents."""
    pages = [path.read_text() for path in (root / 'docs' / 'api').glob('*.md')]
    return re.findall(r'^\.\. (?:auto|py:)\w+:: (\S+)$', '\n'.join(pages), re.MULTILINE)


def documents_of(text):
    """Documents in the toctrees of a page, in order."""
    trees = re.findall(r'```\{toctree\}\n(.*?)```', text, re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(':')]
    return [re.sub(r'.*<(.*)>', r'\1', line) for line in lines]


def test_every_public_name_is_in_the_reference(documented):
    assert {f'resnet_jax.{name}' for name in resnet_jax.__all__} <= set(documented)


def test_the_reference_has_each_name_once_and_all_exist(documented):
    assert len(documented) == len(set(documented))
    for name in documented:
        module, _, last = name.rpartition('.')
        assert hasattr(importlib.import_module(module), last), name


def test_names_that_documents_import_are_in_the_reference(root, documented):
    for path in [root / 'README.md', *(root / 'docs').glob('*.md')]:
        for block in re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.partition('.')[0] == 'resnet_jax':
                    for alias in node.names:
                        assert {f'{node.module}.{alias.name}', f'resnet_jax.{alias.name}'} & set(documented), path.name


def test_the_contents_list_every_document_in_both_languages(root):
    english, turkish = (documents_of((root / 'docs' / name).read_text()) for name in ('index.md', 'index.tr.md'))
    assert english == turkish
    documents = {path.stem for path in (root / 'docs').glob('*.md') if not path.stem.endswith('.tr')}
    assert set(english) == documents - {'index'} | {'api/index'}
    reference = documents_of((root / 'docs' / 'api' / 'index.md').read_text())
    assert set(reference) == {path.stem for path in (root / 'docs' / 'api').glob('*.md')} - {'index'}


def test_pictures_for_dark_pages_have_the_size_of_their_twins(root):
    for dark in (root / 'docs').glob('*-dark.png'):
        light = dark.with_name(dark.name.replace('-dark', ''))
        with Image.open(dark) as one, Image.open(light) as other:
            assert one.size == other.size, dark.name


def test_pictures_that_documents_show_exist_and_dark_twins_are_shown(root):
    for path in [*root.glob('*.md'), *(root / 'docs').glob('*.md')]:
        text = path.read_text(encoding='utf-8')
        shown = set(re.findall(r'[("](\S+\.png)[)"]', text))
        assert all((path.parent / name).exists() for name in shown), path.name
        for name in shown:
            dark = name.replace('.png', '-dark.png')
            assert dark in shown or not (path.parent / dark).exists(), f'{path.name} shows {name} alone'
        for dark, light in re.findall(r'srcset="([^"]*)">\s*<img [^>]*src="([^"]*)"', text):
            assert dark == light.replace('.png', '-dark.png')
