"""A store with the shipped papers and a few from outside (one of them hostile), an application over it, a server, a browser."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from starlette.testclient import TestClient

from orrery.catalogue import record
from orrery.catalogue.mail import FileMailer
from orrery.catalogue.store import Store
from orrery.web.app import create_app
from orrery.web.server import Background
from orrery.web.settings import Settings
from web.support import BASE, OUTSIDE


def fill(store: Store) -> None:
    """What tests read besides the shipped papers."""
    store.record("import", {"source": "<listing & more>", "papers": [record.clean(fields) for fields in OUTSIDE]})


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled store, closed."""
    folder = tmp_path_factory.mktemp("papers")
    with Store.open(folder) as store:
        fill(store)
    return folder


@pytest.fixture(scope="session")
def shared(template: Path) -> Iterator[Store]:
    """A store for tests that change nothing."""
    folder = Path(tempfile.mkdtemp(prefix="papers-", dir=template.parent))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    with Store.open(folder) as store:
        yield store


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Store]:
    """A store of one's own."""
    shutil.copytree(template, tmp_path / "papers")
    with Store.open(tmp_path / "papers") as opened:
        yield opened


@pytest.fixture(scope="session")
def reading(shared: Store) -> Iterator[TestClient]:
    """A client of an application whose store nobody changes."""
    with TestClient(create_app(shared, Settings()), base_url=BASE) as client:
        yield client


@pytest.fixture
def open_app(store: Store, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of one's own application; mails land in `tmp_path / "mail"`."""
    clients = []

    def make(client: tuple[str, int] = ("127.0.0.1", 50000), base: str = BASE, **settings: Any) -> TestClient:
        app = create_app(store, Settings(**{"mailer": FileMailer(tmp_path / "mail"), **settings}))
        made = TestClient(app, base_url=base, follow_redirects=False, client=client)
        made.__enter__()
        clients.append(made)
        return made

    yield make
    for made in clients:
        made.__exit__(None, None, None)


@pytest.fixture
def client(open_app: Callable[..., TestClient]) -> TestClient:
    """A client of this machine's user."""
    return open_app()


@pytest.fixture(scope="session")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """A real server on a free port, over a store of its own."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(template, folder / "papers")
    with Store.open(folder / "papers") as store, Background(store, Settings(port=0, mailer=FileMailer(folder / "mail"))) as running:
        running.store, running.folder = store, folder  # type: ignore[attr-defined]
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium, closed with the file that uses it, so that its time counts for this room."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with sync.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield running
        running.close()
