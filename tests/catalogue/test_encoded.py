"""An encoder from outside in place of the catalogue's space: asked once for every paper, kept, refused in a sentence."""

import numpy as np
import pytest

from catalogue import finding
from orrery.catalogue import encoded, search
from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError


class Letters:
    """Places a text by how often it says each of some words."""

    def __init__(self, name="letters-1", words=("percussion", "decoder", "bits")):
        self.name, self.words, self.read = name, words, []

    def __call__(self, texts):
        self.read += list(texts)
        return np.array([[text.lower().count(word) for word in self.words] for text in texts], float)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path) as opened:
        opened.record("import", {"source": "test", "papers": finding.IMPORTED}, at=finding.AT)
        yield opened


def slugs(found):
    return [hit.paper.slug for hit in found.hits]


def test_papers_are_read_once_and_ranked_by_the_encoder(store):
    encoder = Letters()
    found = search.search(store, "percussion", mode="semantic", encoder=encoder)
    assert len(encoder.read) == store.count() + 1 and encoder.read[-1] == "percussion"
    wanted = encoded.current(store, encoder)
    cosines = dict(zip(wanted.ids.tolist(), wanted.vectors[:, 0].tolist(), strict=True))
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert len(found.hits) == sum(value >= search.NEAREST for value in cosines.values()) > 0
    assert all("percussion" in f"{hit.paper.title} {hit.paper.sentence} {hit.paper.abstract}".lower() for hit in found.hits)
    again = Letters()
    assert slugs(search.search(store, "percussion", mode="semantic", encoder=again)) == slugs(found)
    assert again.read == ["percussion"]  # the papers came from the folder


def test_new_papers_are_read_alone_and_other_weights_read_all(store):
    encoder = Letters()
    encoded.current(store, encoder)
    before = len(encoder.read)
    more = {**finding.IMPORTED[0], "title": "Seven bits of percussion", "arxiv": None, "doi": None, "slug": None}
    store.record("import", {"source": "test", "papers": [more]}, at=finding.AT)
    placed = encoded.current(store, encoder)
    assert len(encoder.read) == before + 1 and "Seven bits of percussion" in encoder.read[-1]
    lengths = np.linalg.norm(placed.vectors, axis=1)
    assert len(placed.ids) == store.count() and (np.isclose(lengths, 1) | (lengths == 0)).all()
    assert np.allclose(placed.vectors[-1], np.array([1, 1, 2]) / np.sqrt(6))  # the new paper, with its abstract
    other = Letters("letters-2")
    encoded.current(store, other)
    assert len(other.read) == store.count()


def test_a_damaged_folder_is_made_anew(store):
    encoder = Letters()
    encoded.current(store, encoder)
    file = store.folder / encoded.FOLDER / encoder.name / "vectors.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 8
    file.write_bytes(bytes(data))
    again = Letters()
    encoded.current(store, again)
    assert len(again.read) == store.count()


def test_hybrid_and_related_take_it_too(store):
    encoder = Letters()
    assert finding.DRUMS in slugs(search.search(store, "percussion labels", encoder=encoder))
    near = search.related(store, finding.DRUMS, encoder=encoder)
    assert near and all(score > 0 for _, score in near)


def test_what_is_no_encoder_is_refused(store):
    with pytest.raises(ConfigError, match="name must be letters"):
        encoded.current(store, Letters("../out"))
    broken = Letters()
    broken.words = ()
    with pytest.raises(ConfigError, match="one finite vector"):
        encoded.current(store, type("Flat", (), {"name": "flat", "__call__": lambda self, texts: np.ones(len(texts))})())
