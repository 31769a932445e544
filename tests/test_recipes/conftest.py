"""What ``model-index.yml`` says of every recipe."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def metafiles():
    """Map each metafile that ``model-index.yml`` imports to its content."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return {path: yaml.safe_load((ROOT / path).read_text()) for path in index['Import']}


@pytest.fixture(scope='session')
def indexed(metafiles):
    """Map the path of each recipe's config to its entry."""
    return {entry['Config']: entry for content in metafiles.values() for entry in content['Models']}
