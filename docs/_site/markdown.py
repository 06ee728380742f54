"""Preprocesses Markdown pages: included files, translations, links between files, dark pictures, external links."""

import pathlib
import posixpath
import re
from typing import Any

from docutils import nodes

INCLUDE = re.compile(r'^```\{include\} (\S+)\n```$', re.MULTILINE)
OTHER_LANGUAGE = re.compile(r'^\*\[(?:Türkçe|English)\]\([^)]*\)\*\n', re.MULTILINE)
PICTURE = re.compile(r'<picture>.*?<img alt="([^"]*)" src="([^"]*)".*?</picture>', re.DOTALL)
LINK = re.compile(r'(?<=\]\()([^)#\s:]+)')
# Pages whose text is a file in the root of the repository.
PAGES = {'../README.md': 'index.md', '../CONTRIBUTING.md': 'contributing.md', '../CHANGELOG.md': 'changelog.md'}


def read_page(app: Any, docname: str, source: list[str]) -> None:
    """Reads a page in the site's language, or in English if there is no translation."""
    docs = pathlib.Path(app.srcdir)
    translated = docs / f'{docname}.{app.config.language}.md'
    if translated.exists():
        app.env.note_dependency(translated)
        source[0] = translated.read_text(encoding='utf-8')

    def included(match: re.Match[str]) -> str:
        path = docs / match[1]
        app.env.note_dependency(path)
        return as_page(docs, path.read_text(encoding='utf-8'), posixpath.dirname(match[1]))

    text = as_page(docs, source[0], posixpath.dirname(docname), start=posixpath.dirname(docname))
    source[0] = INCLUDE.sub(included, text)


def as_page(docs: pathlib.Path, text: str, folder: str, start: str = '.') -> str:
    """Rewrites links to files as links to pages, and adds the dark version of each picture that has one.

    Args:
      docs: the docs folder.
      text: Markdown.
      folder: folder of the file that contains the text, relative to docs.
      start: folder of the page that shows the text, relative to docs.
    """

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1])).removeprefix('../docs/')
        if not (docs / path).exists():
            return match[0]  # not a link, or a broken one, which Sphinx reports
        path = path.replace('.tr.md', '.md')
        return posixpath.relpath(PAGES.get(path, path), start or '.')

    def twins(match: re.Match[str]) -> str:
        dark = match[2].replace('.png', '-dark.png')
        if not (docs / start / dark).exists():
            return match[0]
        return f'![{match[1]}]({match[2]}){{.only-light}}\n![{match[1]}]({dark}){{.only-dark}}'

    text = PICTURE.sub(r'![\1](\2)', OTHER_LANGUAGE.sub('', text))
    return re.sub(r'!\[([^\]]*)\]\((\S+\.png)\)', twins, LINK.sub(link, text))


def write_links(app: Any, exception: Exception | None) -> None:
    """Writes every external link to ``external-links.txt`` in the output folder."""
    if exception is not None or app.builder.name != 'html':
        return
    pages = [app.env.get_doctree(docname) for docname in app.env.found_docs]
    links = {node.get('refuri', '') for page in pages for node in page.findall(nodes.reference)}
    lines = sorted(link for link in links if '://' in link)
    pathlib.Path(app.outdir, 'external-links.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def setup(app: Any) -> dict[str, bool]:
    """Registers the extension."""
    app.connect('source-read', read_page)
    app.connect('build-finished', write_links)
    return {'parallel_read_safe': True}
