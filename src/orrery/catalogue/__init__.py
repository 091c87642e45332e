"""The papers as data: what there is to read, which of it works here, and what its readers think of it.

`store` keeps the papers (an append-only journal is the truth, an SQLite index answers), `merge` decides which records
are the same paper, `status` computes what exists of a paper in this code. Nothing here imports torch.
"""
