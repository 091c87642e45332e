"""The embedded corpus: what it holds and leaves out, the same from a folder and from a zip file, the same twice."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from orrery.core.errors import DataError
from orrery.data import open_corpus
from orrery.data.stdlib import Stdlib, docstrings, topics

MODULE = '''"""Module abc."""

class A:
    """A class.

    Indented."""
    def f(self):
        """Does f."""
        return 1  # comment
'''
FILES = {
    "abc.py": MODULE,
    "collections/__init__.py": "x = 1\r\ny = 2\r\n",
    "encodings/cp1.py": "decoding_table = (\n'\\x00'\n)\n",
    "encodings/utf_9.py": '"""A codec."""\nx = 1\n',
    "latin.py": b"# -*- coding: latin-1 -*-\ns = '\xe9'\n",
    "pydoc_data/topics.py": "topics = {'while': 'The while statement.\\n', 'if': 'The if statement.\\n'}\n",
    "idlelib/NEWS.txt": "What is new.\n",
    "test/test_abc.py": "secret = 1\n",
    "json/tests/test_a.py": "secret = 2\n",
    "idlelib/idle_test/test_b.py": "secret = 3\n",
    "site-packages/numpy/__init__.py": "secret = 4\n",
    "config-3.11-x/python-config.py": "secret = 5\n",
    "_sysconfigdata__linux.py": "secret = 6\n",
    "__pycache__/abc.py": "secret = 7\n",
    "LICENSE.txt": "secret = 8\n",
    "lib-dynload/x.so": b"\x7fELF\x00",
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lib") / "python3.x"
    packed = folder.with_name("python3x.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in FILES.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            archive.writestr(name, data)
    return folder, packed


def read(part: str, root: Path) -> dict[str, str]:
    return {document.name: document.text for document in Stdlib(part, root=root).documents()}


def test_what_belongs_to_the_corpus_and_what_is_left_out(roots: tuple[Path, Path]):
    found = read("", roots[0])
    assert list(found) == [
        *("abc.py", "collections/__init__.py", "encodings/utf_9.py", "latin.py"),
        *("pydoc/if", "pydoc/while", "idlelib/NEWS.txt"),
    ]
    assert "secret" not in "".join(found.values())
    assert found["collections/__init__.py"] == "x = 1\ny = 2\n"
    assert found["latin.py"] == "# -*- coding: latin-1 -*-\ns = 'é'\n"


def test_variants_are_code_alone_and_prose_alone(roots: tuple[Path, Path]):
    assert list(read("code", roots[0])) == ["abc.py", "collections/__init__.py", "encodings/utf_9.py", "latin.py"]
    assert read("prose", roots[0]) == {
        "abc.py": "Module abc.\n\nA class.\n\nIndented.\n\nDoes f.\n",
        "encodings/utf_9.py": "A codec.\n",
        "pydoc/if": "The if statement.\n",
        "pydoc/while": "The while statement.\n",
        "idlelib/NEWS.txt": "What is new.\n",
    }


@pytest.mark.parametrize("part", ["", "code", "prose"])
def test_a_zipped_library_is_the_same_corpus(roots: tuple[Path, Path], part: str):
    assert read(part, roots[1]) == read(part, roots[0])
    assert Stdlib(part, root=roots[1]).facts().hash == Stdlib(part, root=roots[0]).facts().hash


def test_a_library_without_source_is_refused(tmp_path: Path):
    (tmp_path / "abc.pyc").write_bytes(b"compiled")
    with pytest.raises(DataError, match="no source of its standard library"):
        list(Stdlib(root=tmp_path).documents())
    broken = tmp_path / "python.zip"
    broken.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot read the standard library"):
        list(Stdlib(root=broken).documents())


def test_docstrings_and_topics_are_read_and_not_run():
    assert docstrings("import does_not_exist\n'''Not a docstring'''\n") == ""
    assert (
        docstrings("def f():\n    'One.'\n    class B:\n        'Two.'\nasync def g():\n    'Three.'\n")
        == "One.\n\nTwo.\n\nThree.\n"
    )
    assert docstrings("this is python 2: print 'x'") == ""
    assert topics("import does_not_exist\ntopics = {'a': 'b'}\n") == {"a": "b"}


def test_the_running_library_is_large_named_uniquely_and_free_of_tests():
    documents = {}
    for document in open_corpus("stdlib").documents():
        assert document.name not in documents
        documents[document.name] = document
    assert len(documents) > 400
    folders = {folder for name in documents for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert {"argparse.py", "json/decoder.py", "pydoc/while"} <= set(documents)
    facts = open_corpus("stdlib").facts()
    assert facts.bytes > 5e6
    assert facts.replaced == 0
    assert facts.documents == len(documents)


def test_all_variants_are_registered():
    assert [open_corpus(name).name for name in ("stdlib", "stdlib-code", "stdlib-prose")] == [
        "stdlib",
        "stdlib-code",
        "stdlib-prose",
    ]
