"""n-gram queries by looking at every place of a text. Documents are lists of ids; the mark stands for their edges."""

from __future__ import annotations


class Counter:
    """All answers by exhaustion. The stream is MARK d1 MARK d2 .. MARK; the last mark begins nothing."""

    def __init__(self, documents, mark, vocabulary):
        self.documents, self.mark, self.vocabulary = [list(map(int, d)) for d in documents], mark, vocabulary
        self.stream = [i for d in self.documents for i in [mark, *d]]
        self.tokens = len(self.stream)
        self.closed = [*self.stream, mark]

    def places(self, gram, across=False, inner=False):
        gram = list(gram)
        if not across and self.mark in (gram[1:] if inner else gram[1:-1]):
            return []
        n = len(gram) + inner
        return [p for p in range(self.tokens) if p + n <= len(self.closed) and self.closed[p : p + len(gram)] == gram]

    def count(self, gram, across=False):
        return len(self.places(gram, across))

    def next(self, context, across=False):
        found = {}
        for p in self.places(context, across, inner=True):
            token = self.closed[p + len(context)]
            found[token] = found.get(token, 0) + 1
        return dict(sorted(found.items()))

    def longest(self, context):
        context = list(context)
        if self.mark in context:
            context = context[len(context) - 1 - context[::-1].index(self.mark) :]
        while not self.places(context, inner=True):
            context = context[1:]
        return context

    def inf(self, context):
        """(length of the suffix, what follows it)"""
        suffix = self.longest(context)
        return len(suffix), self.next(suffix)

    def document_of(self, place):
        return self.stream[: place + 1].count(self.mark) - 1

    def documents_with(self, gram):
        """{document: offsets of its ids (-1: the mark)}"""
        found = {}
        for p in self.places(gram):
            number = self.document_of(p)
            start = sum(len(d) + 1 for d in self.documents[:number])
            found.setdefault(number, []).append(p - start - 1)
        return found

    def spans(self, text, least):
        """Stretches that occur and are no part of a longer one, at least `least` long."""
        text = list(text)
        occurring = [
            (a, b) for a in range(len(text)) for b in range(a + 1, len(text) + 1) if self.count_clean(text[a:b])
        ]
        return [
            (a, b)
            for a, b in occurring
            if b - a >= least and not any(c <= a and b <= d and (c, d) != (a, b) for c, d in occurring)
        ]

    def count_clean(self, gram):
        return len(self.places(gram))

    def cnf(self, clauses, window):
        places = [sorted({p for gram in clause for p in self.places(gram)}) for clause in clauses]
        totals = [sum(self.count(gram) for gram in clause) for clause in clauses]
        anchor = totals.index(min(totals))
        return sum(
            all(
                c == anchor
                or any(abs(q - p) <= window and self.document_of(q) == self.document_of(p) for q in places[c])
                for c in range(len(clauses))
            )
            for p in places[anchor]
        )
