"""A closed list of topics and the rule that files a paper under them: a function of a paper's text alone.

Rule: a topic's terms are words or phrases, compared by their stems with stop words left out. A paper belongs to a topic
when one of its terms stands in the title or in our sentence, or when terms of it stand at least `MENTIONS` times in the
abstract, or when its kind begins with one of the topic's kinds. Rules are few and can be read; nothing is learned. What
the store holds of each topic is in :mod:`orrery.catalogue.topics`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from orrery.catalogue.words import stems
from orrery.core.errors import UnknownNameError, suggest

MENTIONS = 3  # in an abstract; one or two are a paper's context, not its subject
_LONGEST_TERM = 4  # words


@dataclass(frozen=True)
class Rule:
    """What a topic is called and which words speak of it."""

    slug: str
    title: str
    terms: str  # separated by commas
    kinds: tuple[str, ...] = ()


RULES = (
    Rule(
        "attention",
        "Attention and transformers",
        "attention, transformer, transformers, transnormer, bert, gpt",
    ),
    Rule(
        "recurrence",
        "Recurrence and state spaces",
        "recurrent, recurrence, rnn, rnns, lstm, bilstm, gru, qrnn, rwkv, mamba, mamba2, hybrid architecture, state space, "
        "ssm, linear recurrent, xlstm",
    ),
    Rule(
        "mlp-convolution",
        "MLPs and convolutions",
        "mlp, mlps, mixer, hypermixer, glu, gated linear unit, convolution, convolutional, cnn, conv, canon layer, activation",
    ),
    Rule(
        "experts-routing",
        "Experts and routing",
        "mixture of experts, moe, routing, router, route, expert models, ensemble",
    ),
    Rule(
        "long-context",
        "Long context and memory",
        "long context, long-range, long range, long sequence, context length, long-term dependency, long document, kv cache, state capacity",
    ),
    Rule(
        "compression",
        "Compression and distillation",
        "distillation, distilled, distil, prune, pruning, quantization, compress, compression, compact, low-bit, linearization, subnetwork",
        ("compression",),
    ),
    Rule(
        "efficient-inference",
        "Efficient inference",
        "inference, early exit, kv cache, caching, latency, on-device, sparse attention, decoding speed, throughput, speculative decoding",
        ("inference",),
    ),
    Rule(
        "objectives",
        "Pre-training and objectives",
        "pretraining, pre-training, pretrain, pre-train, objective, loss, span corruption, replaced token, masked language, likelihood, contrastive",
        ("objective",),
    ),
    Rule(
        "optimization",
        "Optimization and training",
        "optimizer, sgd, gradient descent, preconditioner, mixed precision, learning rate, training efficiency, stabilizing, curvature",
        ("optimizer",),
    ),
    Rule(
        "adaptation",
        "Fine-tuning and adaptation",
        "fine-tuning, finetuning, fine-tune, parameter-efficient, peft, lora, adapter, model editing, editing, merging, transfer learning, "
        "instruction tuning, instruction-tuning, continual learning, multi-task, prompt optimization",
        ("adaptation",),
    ),
    Rule(
        "retrieval",
        "Retrieval and search",
        "retrieval, retrieval-augmented, rag, search engine, ranking, recommender, recommendation, question answering, "
        "knowledge base, knowledge-intensive",
        ("retrieval",),
    ),
    Rule(
        "embeddings",
        "Embeddings",
        "embedding, embeddings, sentence embedding, word vector, vector representation, matryoshka, sentence bert, sbert, word2vec, "
        "sentence representation, text encoding",
        ("embedding",),
    ),
    Rule(
        "ngrams",
        "N-grams and statistics",
        "n-gram, ngram, bigram, infini-gram, suffix array, markov, back-off",
        ("ngram",),
    ),
    Rule(
        "architecture-search",
        "Architecture search",
        "architecture search, nas, zero-cost proxy, surrogate, supernet, evolutionary search, quality diversity, mutation",
        ("search",),
    ),
    Rule("graphs", "Graphs", "graph, graphs, gnn, gnns, knowledge graph"),
    Rule(
        "multilingual",
        "Languages of the world",
        "multilingual, cross-lingual, low-resource, linguistic diversity, arabic, bangla, bengali, french, german, hebrew, hindi, marathi, "
        "italian, norwegian, polish, portuguese, russian, turkish, ukrainian, chinese, spanish, swahili, japanese, korean, scandinavian",
    ),
    Rule(
        "data",
        "Data sets and augmentation",
        "dataset, data set, datasets, corpus, corpora, data augmentation, annotation, synthetic data, sampling, deduplication",
        ("data",),
    ),
    Rule(
        "evaluation",
        "Evaluation and benchmarks",
        "benchmark, benchmarks, benchmarking, evaluation, systematic analysis, evaluating, judge, superglue, glue, metric, leaderboard, model cards",
        ("evaluation",),
    ),
    Rule(
        "understanding",
        "How models work",
        "interpretability, explanation, explanations, interpretable, explainable, neural collapse, linguistic structure, inductive bias, probing, "
        "mechanistic, generalization, in-context learning, in-context language, heuristics, subnetwork, physics of language",
    ),
    Rule(
        "agents-reasoning",
        "Agents, tools and reasoning",
        "agent, agents, agentic, multi-agent, tool use, tools, apis, api, reasoning, chain of thought, neurosymbolic, neuro-symbolic, "
        "symbolic, planning, reinforcement learning",
        ("agents",),
    ),
    Rule("speech-audio", "Speech and audio", "speech, audio, spoken, asr, voice, dialogue, acoustic, music"),
    Rule(
        "vision",
        "Vision and many modalities",
        "vision, visual, image, images, multimodal, multi-modal, bi-modal, video, segmentation, diffusion models",
    ),
    Rule(
        "science",
        "Science and medicine",
        "protein, proteins, molecule, molecular, chemical, chemistry, material, superconductivity, cell, omic, genomic, medical, clinical, "
        "biomedical, brain, intracranial, visual system, scientific text, physics, history philosophy",
    ),
    Rule(
        "neuromorphic-energy",
        "Energy and unusual hardware",
        "energy, carbon, neuromorphic, spiking, spinnaker, astrocyte, hardware, accelerator, cortical, edge device, power consumption",
    ),
    Rule(
        "applications",
        "Applications",
        "classification, essay, financial, finance, patent, legal, toxic, tweets, tweet, news, social media, education, pedagogical, student, code, "
        "software, it operations, privacy, encrypted, summarization, translation, text generation, named entity, sentiment",
        ("application",),
    ),
    Rule(
        "surveys", "Surveys and overviews", "survey, review, overview, book, thesis, recent trends, report", ("survey",)
    ),
)
BY_SLUG = {rule.slug: rule for rule in RULES}


@functools.cache
def _terms() -> dict[str, tuple[tuple[list[str], tuple[str, ...]], ...]]:
    """First stem of a term -> the terms that begin with it: their other stems, and slugs of their topics."""
    found: dict[tuple[str, ...], list[str]] = {}
    for rule in RULES:
        for term in rule.terms.split(","):
            slugs = found.setdefault(tuple(stems(term)), [])
            if rule.slug not in slugs:
                slugs.append(rule.slug)
    begins: dict[str, list[tuple[list[str], tuple[str, ...]]]] = {}
    for (first, *rest), topics in ((term, tuple(slugs)) for term, slugs in found.items() if 0 < len(term) <= _LONGEST_TERM):
        begins.setdefault(first, []).append((rest, topics))
    return {first: tuple(terms) for first, terms in begins.items()}


def _mentions(text: str) -> dict[str, int]:
    """How often the terms of every topic stand in a text; at one place a topic is counted once."""
    found, terms = stems(text), _terms()
    counts: dict[str, int] = {}
    for place in [place for place, word in enumerate(found) if word in terms]:
        seen: set[str] = set()
        for rest, slugs in terms[found[place]]:
            if not rest or found[place + 1 : place + 1 + len(rest)] == rest:
                seen.update(slugs)
        for slug in seen:
            counts[slug] = counts.get(slug, 0) + 1
    return counts


def assign(title: str, sentence: str = "", abstract: str = "", kind: str = "") -> tuple[str, ...]:
    """Slugs of the topics of a paper, in the order of the list; a function of the text alone."""
    found = set(_mentions(f"{title}\n{sentence}"))
    found.update(slug for slug, count in _mentions(abstract).items() if count >= MENTIONS)
    kind = kind.strip().lower()
    found.update(rule.slug for rule in RULES if kind and kind.startswith(rule.kinds or "\0"))
    return tuple(rule.slug for rule in RULES if rule.slug in found)


def titles() -> dict[str, str]:
    """Slug -> title of all topics, in the list's order."""
    return {rule.slug: rule.title for rule in RULES}


def check(slug: str) -> str:
    """`slug` when it is a topic.

    Raises:
        UnknownNameError: with near names.
    """
    if slug not in BY_SLUG:
        raise UnknownNameError(f"unknown topic '{slug}'.{suggest(slug, BY_SLUG)} Topics: {', '.join(BY_SLUG)}")
    return slug
