"""Reading a shard inside a kernel: its words, each page compared with its checksum before its first word is believed.

A shard is one array of 64-bit words (see :mod:`orrery.ngram.shard` for its sections). Kernels take

    W     (words,) int64: the mapped file
    ok    (pages + 1,) uint8: 1 where a page of tokens or suffixes has been checked; the last is set when a check failed
    meta  (16,) int64: the numbers of :meth:`orrery.ngram.shard.Layout.meta`

and read its numbers as a tuple `g` of :func:`unpack`: 0 suffixes, 1-4 how tokens lie in a word (log of their number, mask of
that, log of their bits, largest token: the mark), 5 where the suffix array begins, 6 its bits, 7 where the checksums
begin, 8 and 9 where the guide begins and its entries, 10 the logarithm of their distance, 11 the mark's id, 12 ids in all,
13 tokens in a word.

A flipped bit ends in an error and not in a wrong count; positions are bounded besides, so it cannot end in a crash.
"""

from __future__ import annotations

from orrery.ngram.compiled import inlined, tiny

PAGE_LOG = 6  # words of a page, as a power of 2: 512 bytes, so that little is read to check what is read first
_KEEP = 0x3FFFFFFFFFFFFFFF
_LOW = 0xFFFFFFFF


@inlined
def page_sum(W, first, last, page):  # type: ignore[no-untyped-def]
    """A checksum of words first..last, which are page number `page`, in 62 bits: any one wrong bit changes it.

    Every half of a word has an odd weight of its own, so a sum that may be taken in any order tells them apart.
    """
    total, weight = 0, 0x9E3779B1
    for k in range(first, last):
        c, w = weight + int(k - first) * 0x7F4A7C16, int(W[k])  # compiled: 64 bits that wrap; else Python's, whose low bits are the same
        total += (w & _LOW) * c + ((w >> 32) & _LOW) * (c + 0x165667B2)
    return (total + (int(page) + 1) * 0x2545F4914F6CDD1D) & _KEEP


@inlined
def check_page(W, ok, sums, page):  # type: ignore[no-untyped-def]
    """Compare a page with its checksum."""
    if page_sum(W, page << PAGE_LOG, (page + 1) << PAGE_LOG, page) != W[sums + page]:
        ok[len(ok) - 1] = 1
    ok[page] = 1


@tiny
def word(W, ok, sums, k):  # type: ignore[no-untyped-def]
    """Word k, whose page is checked when it is the first of it that is read."""
    page = k >> PAGE_LOG
    if ok[page] == 0:
        check_page(W, ok, sums, page)
    return W[k]


@tiny
def token_at(W, ok, g, position):  # type: ignore[no-untyped-def]
    """The stored token at a position, -1 behind the end."""
    if position > g[0]:
        return -1
    packed = word(W, ok, g[7], position >> g[1])
    return (packed >> ((position & g[2]) << g[3])) & g[4]


@tiny
def suffix_at(W, ok, g, rank):  # type: ignore[no-untyped-def]
    """Position of the suffix with this rank."""
    bit = rank * g[6]
    k, s = g[5] + (bit >> 6), bit & 63
    packed = word(W, ok, g[7], k)
    if s + g[6] <= 64:
        position = (packed >> s) & ((1 << g[6]) - 1)
    else:
        low = (packed >> s) & ((1 << (64 - s)) - 1)
        position = low | ((word(W, ok, g[7], k + 1) & ((1 << (s + g[6] - 64)) - 1)) << (64 - s))
    if position >= g[0]:
        ok[len(ok) - 1] = 1
        return 0
    return position


@tiny
def key_at(W, ok, g, position):  # type: ignore[no-untyped-def]
    """The first tokens of a suffix, one word of them, as one number in their order; zeros stand behind the end.

    For positions at which so many tokens are left. Signed, so that the order is that of int64: what the guide holds.
    """
    key = token_at(W, ok, g, position) - (1 << (64 // g[13] - 1))
    for d in range(1, g[13]):
        key = (key << (64 // g[13])) + token_at(W, ok, g, position + d)
    return key


@inlined
def unpack(meta):  # type: ignore[no-untyped-def]
    """The numbers of the layout as a tuple, which the compiler keeps in registers."""
    a = (meta[0], meta[1], meta[2], meta[3], meta[4], meta[5], meta[6])
    return a + (meta[7], meta[8], meta[9], meta[10], meta[11], meta[12], meta[13])
