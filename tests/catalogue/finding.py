"""What the tests of finding share: a store with the shipped papers and a few that came by import."""

AT = "2026-03-10T08:00:00Z"
IMPORTED = [
    {
        "title": "Quantised Keys for Streaming Decoders",
        "arxiv": "2601.00001",
        "year": 2026,
        "date": "2026-03-08",
        "abstract": "We keep keys and values of a decoder in four bits, so that a phone can read a whole book. "
        "<b>No</b> calibration & no fine-tuning.",
        "authors": ["Émilie Dürr", "Bo Chen"],
        "kind": "inference",
        "upvotes": 12,
    },
    {
        "title": "A Field Guide to Xylophonic Priors",
        "arxiv": "2601.00002",
        "year": 2026,
        "date": "2026-03-09",
        "abstract": "Xylophonic priors make percussion transcription robust.",
        "authors": ["Ada Smith"],
        "kind": "application",
        "upvotes": 3,
    },
    {
        "title": "Percussion Transcription without Labels",
        "arxiv": "2601.00003",
        "year": 2026,
        "date": "2026-03-09",
        "kind": "data",
        "upvotes": 40,
    },
    {
        "title": "An Undated Note on Marimbas",
        "year": 2025,
        "kind": "survey",
        "abstract": "Marimbas and xylophones compared.",
    },
]


def slug(title):
    from orrery.catalogue import keys

    return keys.slug(title)


KEYS, XYLO, DRUMS, NOTE = (slug(paper["title"]) for paper in IMPORTED)
