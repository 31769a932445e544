"""Lets one relative link work in the repository and on the site.

The pages are written for the repository: ``../configs/README.md``. On the site, whose root is this folder, every file
of the repository that a page links to is a page or image too, at its own path; code is shown as code.
"""

import os
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCS = 'docs/'
LINK = re.compile(r'(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)')  # what stands in [text](here#heading)
FENCE = re.compile(r'(^```.*?^```)', re.MULTILINE | re.DOTALL)
ROLE = re.compile(r':(?:class|func|meth|attr|mod):(?=<code>)')  # of the docstrings' cross-references
IMAGES = ('.png', '.jpg', '.svg')
HOME = 'README.md'  # the site has a home of its own, index.md
REPOSITORY_PATHS: dict[str, str] = {}  # by the path on the site, of what is added here


def site_path(path: str) -> str:
    """Return the site's source path of a file of the repository."""
    if path.startswith(DOCS):
        return path[len(DOCS) :]
    if path == HOME:
        return 'repository.md'
    return path if path.endswith(('.md', *IMAGES)) else f'{path}.md'


def repository_path(src_uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    return REPOSITORY_PATHS.get(src_uri, DOCS + src_uri)


def prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """Yield pieces of a page, and whether each is prose rather than a fenced block."""
    for number, piece in enumerate(FENCE.split(markdown)):
        yield number % 2 == 0, piece


def linked(path: str) -> set[str]:
    """Return the files of the repository that a Markdown file links to."""
    with open(os.path.join(ROOT, path)) as file:
        pieces = [piece for is_prose, piece in prose(file.read()) if is_prose]
    return {
        os.path.normpath(os.path.join(os.path.dirname(path), link)) for piece in pieces for link in LINK.findall(piece)
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what that links to."""
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
    """Make the site's file for one of the repository."""
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
    """Turn links of the repository into links of the site."""
    here = repository_path(page.file.src_uri)

    def turn(match: 're.Match') -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(here), match[1]))
        return os.path.relpath(site_path(target), os.path.dirname(page.file.src_uri) or '.')

    return ''.join(LINK.sub(turn, piece) if is_prose else piece for is_prose, piece in prose(markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the roles off cross-references in docstrings."""
    return ROLE.sub('', html)
