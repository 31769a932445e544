"""MkDocs hooks that make the repository's relative links work on the site.

Pages link as in the repository: ``../configs/README.md``. The root of the site is this folder, so every repository file
that a page links to is added to the site as a page or image at its own path. Code files become pages with a code block.
"""

import os
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCS = 'docs/'
LINK = re.compile(r'(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)')  # the path in [text](path#heading)
FENCE = re.compile(r'(^```.*?^```)', re.MULTILINE | re.DOTALL)
ROLE = re.compile(r':(?:class|func|meth|attr|mod):(?=<code>)')  # cross-reference roles in docstrings
IMAGES = ('.png', '.jpg', '.svg')
HOME = 'README.md'  # index.md is the site's home page
REPOSITORY_PATHS: dict[str, str] = {}  # path on the site to path in the repository, for added files


def site_path(path: str) -> str:
    """Return the site's source path of a repository file."""
    if path.startswith(DOCS):
        return path[len(DOCS) :]
    if path == HOME:
        return 'repository.md'
    return path if path.endswith(('.md', *IMAGES)) else f'{path}.md'


def repository_path(src_uri: str) -> str:
    """Return the repository path of a file on the site."""
    return REPOSITORY_PATHS.get(src_uri, DOCS + src_uri)


def prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """Yield whether each piece of a page is prose (not a fenced block), and the piece."""
    for number, piece in enumerate(FENCE.split(markdown)):
        yield number % 2 == 0, piece


def linked(path: str) -> set[str]:
    """Return the repository files that a Markdown file links to."""
    with open(os.path.join(ROOT, path)) as file:
        pieces = [piece for is_prose, piece in prose(file.read()) if is_prose]
    return {
        os.path.normpath(os.path.join(os.path.dirname(path), link)) for piece in pieces for link in LINK.findall(piece)
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository files that pages link to, directly or through other pages."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        new = {target for target in linked(path) if os.path.isfile(os.path.join(ROOT, target))} - seen
        seen |= new
        waiting += [target for target in new if target.endswith('.md')]
        for target in new - {path for path in new if path.startswith(DOCS)}:
            REPOSITORY_PATHS[site_path(target)] = target
            files.append(generated(target, config))
    return files


def generated(path: str, config: MkDocsConfig) -> File:
    """Make the site's file for a repository file."""
    source = os.path.join(ROOT, path)
    if path.endswith(('.md', *IMAGES)):
        return File.generated(config, site_path(path), abs_src_path=source)
    with open(source) as file:
        code = file.read()
    language = 'python' if path.endswith('.py') else 'yaml' if path.endswith('.yml') else 'text'
    content = (
        f'---\nsearch: {{exclude: true}}\n---\n# {os.path.basename(path)}\n\n`{path}`\n\n````{language}\n{code}````\n'
    )
    return File.generated(config, site_path(path), content=content)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn repository links into site links."""
    here = repository_path(page.file.src_uri)

    def turn(match: 're.Match') -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(here), match[1]))
        return os.path.relpath(site_path(target), os.path.dirname(page.file.src_uri) or '.')

    return ''.join(LINK.sub(turn, piece) if is_prose else piece for is_prose, piece in prose(markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remove the roles of cross-references in docstrings."""
    return ROLE.sub('', html)
