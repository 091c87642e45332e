"""The tables of the papers' index. They can be made again at any time from the shipped data and the journal.

The full-text index is kept by :mod:`orrery.catalogue.merge`, which alone writes papers, and not by triggers: a statement
with a trigger opens a savepoint, and FTS5 flushes its pending words at every savepoint, so that each paper would be
written to the disk as a segment of its own (half of an import's time). `Store.verify` checks the index against the table.
"""

from __future__ import annotations

VERSION = 2  # another version in a database: it is built anew

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE papers (
    id INTEGER PRIMARY KEY, slug TEXT NOT NULL UNIQUE, title TEXT NOT NULL, title_key TEXT NOT NULL, arxiv TEXT UNIQUE, doi TEXT UNIQUE,
    url TEXT, year INTEGER, date TEXT, kind TEXT, core INTEGER NOT NULL, sentence TEXT NOT NULL, abstract TEXT NOT NULL,
    authors TEXT NOT NULL, rooms TEXT NOT NULL, names TEXT NOT NULL, upvotes INTEGER NOT NULL, votes INTEGER NOT NULL DEFAULT 0,
    curated INTEGER NOT NULL, source TEXT NOT NULL, added TEXT NOT NULL, shipped INTEGER NOT NULL, digest TEXT NOT NULL
);
CREATE INDEX papers_title_key ON papers (title_key);
CREATE INDEX papers_date ON papers (date);
CREATE INDEX papers_added ON papers (added);
CREATE INDEX papers_year ON papers (year);
CREATE INDEX papers_kind ON papers (kind);
CREATE INDEX papers_shipped ON papers (id) WHERE shipped;
CREATE TABLE aliases (slug TEXT PRIMARY KEY, paper INTEGER NOT NULL REFERENCES papers (id)) WITHOUT ROWID;
CREATE TABLE paper_topics (paper INTEGER NOT NULL REFERENCES papers (id), topic TEXT NOT NULL, PRIMARY KEY (paper, topic)) WITHOUT ROWID;
CREATE INDEX topic_papers ON paper_topics (topic, paper);
CREATE TABLE imports (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, source TEXT NOT NULL, added INTEGER NOT NULL, merged INTEGER NOT NULL,
    unchanged INTEGER NOT NULL, refused INTEGER NOT NULL
);
CREATE TABLE readers (
    id INTEGER PRIMARY KEY, email TEXT UNIQUE, name TEXT NOT NULL, role TEXT NOT NULL, created TEXT NOT NULL, last_seen TEXT
);
CREATE TABLE votes (
    paper INTEGER NOT NULL REFERENCES papers (id), reader INTEGER NOT NULL REFERENCES readers (id), at TEXT NOT NULL,
    PRIMARY KEY (paper, reader)
) WITHOUT ROWID;
CREATE INDEX votes_reader ON votes (reader, at);
CREATE INDEX votes_at ON votes (at);
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, reader INTEGER REFERENCES readers (id), payload TEXT NOT NULL, state TEXT NOT NULL,
    note TEXT NOT NULL DEFAULT '', paper INTEGER REFERENCES papers (id)
);
CREATE INDEX submissions_state ON submissions (state, at);
CREATE TABLE picks (
    paper INTEGER NOT NULL REFERENCES papers (id), by INTEGER NOT NULL REFERENCES readers (id), at TEXT NOT NULL, PRIMARY KEY (paper, by)
) WITHOUT ROWID;
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, frequency TEXT NOT NULL, topics TEXT NOT NULL DEFAULT '', state TEXT NOT NULL,
    created TEXT NOT NULL, confirmed TEXT, ended TEXT
);
CREATE TABLE deliveries (
    subscription INTEGER NOT NULL REFERENCES subscriptions (id), period TEXT NOT NULL, state TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (subscription, period)
) WITHOUT ROWID;
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, paper INTEGER NOT NULL REFERENCES papers (id), at TEXT NOT NULL, old TEXT, new TEXT NOT NULL);
CREATE INDEX verdicts_at ON verdicts (at);
CREATE INDEX verdicts_paper ON verdicts (paper, id);
CREATE VIRTUAL TABLE papers_fts USING fts5(
    title, sentence, abstract, authors, names, content='papers', content_rowid='id',
    tokenize='porter unicode61 remove_diacritics 2', prefix='2 3'
);
"""
