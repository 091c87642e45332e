"""Stores that several files of tests read, made once."""

import pytest

from catalogue import finding
from orrery.catalogue.store import Store


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """The shipped papers and four imported ones. For reading only."""
    with Store.open(tmp_path_factory.mktemp("shelf")) as store:
        store.record("import", {"source": "test", "papers": finding.IMPORTED}, at=finding.AT)
        yield store
