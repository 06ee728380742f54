"""Sphinx configuration of the documentation site, which is built from docs/, README.md and the docstrings."""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]

project = html_title = 'resnet_jax'
language = 'en'  # -D language=tr builds the Turkish site
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', '_site.markdown', '_site.docstrings']
exclude_patterns = ['*.tr.md', '_*']
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages, whose inventories would have to be downloaded.
    (r'py:.*', r'(jax|jaxlib|flax|nn|optax|orbax|numpy|np|matplotlib|PIL|collections|pathlib|typing|os|functools)\..*'),
    (r'py:.*', r'(Axes|bool|bytes|dict|float|int|list|object|set|slice|str|tuple|type)'),
]

highlight_language = 'none'  # for code blocks without a language
myst_enable_extensions = ['attrs_inline']
myst_heading_anchors = 3

autodoc_default_options = {'members': True, 'special-members': '__call__', 'exclude-members': 'check_together'}
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [('Attributes', 'params_style'), ('Settings', 'params_style')]
toc_object_entries_show_parents = 'hide'

html_theme = 'sphinx_book_theme'
html_theme_options = {
    'show_toc_level': 2,
    'use_download_button': False,
    'use_fullscreen_button': False,
    'navbar_persistent': [],
}
html_sidebars = {'**': ['navbar-logo.html', 'languages.html', 'search-button-field.html', 'sbt-sidebar-nav.html']}
html_copy_source = False
templates_path = ['_templates']
