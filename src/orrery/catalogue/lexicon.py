"""The field's synonyms: acronyms, spellings, and words that readers use for what papers call otherwise.

Every line is one concept. A text that holds one of its terms holds the concept, so that a query for "NAS" is near a
paper on "neural architecture search" although they share no word. Terms are compared by stems, stop words left out. The
list is general knowledge of the field, not taken from the papers; the semantic embedding learns the rest.
"""

from __future__ import annotations

import functools

from orrery.catalogue.words import stems

CONCEPTS = """
nas, neural architecture search, architecture search, automl, search architectures
llm, large language model, plm, pretrained language model, foundation model
moe, mixture of experts, sparse experts, expert models
rag, retrieval augmented, retrieval augmented generation, open book
ner, named entity, entity recognition
asr, speech recognition, transcribe, transcription, dictation
tts, speech synthesis, text to speech, speech generation
kv cache, key value cache, kv caching, cached keys
ssm, state space, mamba, s4
rnn, recurrent, recurrence, lstm, gru, qrnn, rwkv
gnn, graph neural network, graph, knowledge graph
peft, parameter efficient, lora, adapter, low rank, prefix tuning
distillation, distil, distilled, teacher, student network, kd
prune, pruning, sparsity, sparse
quantization, quantize, low bit, int8
compress, compression, smaller, shrink, slim, compact, reduce size
small, tiny, little, mini, lightweight, lite, low cost, compact, miniature
phone, mobile, smartphone, on device, edge device, embedded device
energy, power, carbon, electricity, co2, climate, green, footprint
neuromorphic, spiking, snn, spikes, brain inspired, cortical, astrocyte
chip, hardware, accelerator, processor, fpga, silicon
fast, speed, quick, accelerate, acceleration, latency, faster, throughput
efficient, efficiency, cheap, cost, resource, low resource
long context, long range, long sequence, long document, context length, context window, long text, book length
linear attention, subquadratic, linear complexity, linearization, attention free, linear time, linear recurrent
mlp, multilayer perceptron, feed forward, glu, gated linear unit, all mlp
convolution, convolutional, cnn
embedding, vector, representation
sentence embedding, sentence representation, text encoding, sbert, sentence bert, text vector
survey, review, overview, introduction, tutorial, state of the field
dataset, data set, corpus, corpora, training data, collection
benchmark, evaluation, evaluate, leaderboard, test suite, metric, score
judge, grade, grading, scoring, assess, assessment, score
speech, audio, voice, spoken, acoustic, sound, listen
noise, denoise, enhancement, clean speech
dialogue, conversation, chat, chatbot, assistant, talk
vision, image, picture, visual, photo, pixel, computer vision
multimodal, bimodal, cross modal, image and text
protein, amino acid, peptide
molecule, molecular, chemical, chemistry, compound, drug, smiles
material, crystal, superconductor, superconductivity, superconducting
medical, clinical, biomedical, health, medicine, patient
brain, neural signal, intracranial, eeg, fmri, cortex, neuroscience
finance, financial, bank, stock, annual report
education, pedagogical, tutor, school, teaching, learner, essay
privacy, private, encrypted, encryption, secret, confidential
toxic, hate speech, offensive, abusive, harassment
fake, deepfake, bot, machine generated, ai generated, disinformation
earth mover, optimal transport, wasserstein
early exit, dynamic computing, adaptive computation
edit, editing, knowledge editing, model editing
merge, merging, combine models, model fusion
continual learning, lifelong, catastrophic forgetting, forgetting, incremental learning, online learning
fine tuning, finetune, adaptation, adapt, transfer learning
instruction tuning, instruction following, instruction learning, instruct
prompt, prompting, prompt optimization
reinforcement learning, rl, policy gradient, reward
optimizer, sgd, preconditioner, second order, curvature, gradient descent, adam
mixed precision, half precision, fp16, bf16, automatic mixed precision, amp
interpretable, interpretability, explanation, explain, explainable, xai, transparent, understand
hallucination, factual, inconsistency, truthfulness
question answering, qa, answer questions, reading comprehension
translation, translate, mt, nmt
summarization, summarize, summary
paraphrase, paraphrasing, rewrite
code, programming, program, software, code generation, program synthesis
agent, tool, api, tool use, calculator, function calling
reasoning, chain of thought, cot, tree of thought, think
route, routing, router, model selection
symbolic, neurosymbolic, neuro symbolic, logic, rule, discrete reasoning
ngram, n gram, bigram, suffix array, markov, back off
tokenizer, tokenization, subword, bpe, vocabulary
embedding free, projection, hashing, vocabulary free
multilingual, cross lingual, many languages, polyglot
low resource language, underrepresented language, linguistic diversity, endangered
scandinavian, norwegian, swedish, danish, nordic
slavic, polish, russian, ukrainian, czech
indian, indic, hindi, marathi, bangla, bengali, tamil
romance language, french, italian, spanish, portuguese, romanian
german, germany
arabic, middle east
hebrew, turkish
search engine, ranking, web search, rank documents, relevance
recommender, recommendation, recommend
classification, classifier, classify, categorize
sentiment, opinion, subjectivity, subjective
social media, tweet, twitter, news
legal, law, patent
parsing, parser, syntax, grammar, constituency
diffusion, denoising diffusion, generative image
data augmentation, augmentation, augment, synthetic data
nli, natural language inference, entailment
rtd, replaced token, electra, replaced token detection
mlm, masked language, mask modeling, span corruption
pretrain, pretraining, pre train, pre training
nlp, natural language processing, natural language
lm, language model, language modeling
attention, self attention
transformer, bert, gpt
documentation, model card, transparency
recurrent memory, memory, state capacity, remember
nested, matryoshka, elastic
hierarchy, hierarchical, tree
"""
LONGEST_TERM = 4  # words


@functools.cache
def _terms() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Stems of a term -> names of its concepts."""
    found: dict[tuple[str, ...], list[str]] = {}
    for number, line in enumerate(CONCEPTS.strip().splitlines()):
        for term in line.split(","):
            key = tuple(stems(term))
            if 0 < len(key) <= LONGEST_TERM:
                names = found.setdefault(key, [])
                name = f"#{number}"
                if name not in names:
                    names.append(name)
    return {term: tuple(names) for term, names in found.items()}


@functools.cache
def _lengths() -> dict[str, int]:
    longest: dict[str, int] = {}
    for term in _terms():
        longest[term[0]] = max(longest.get(term[0], 0), len(term))
    return longest


def concepts(found: list[str]) -> list[str]:
    """The concepts that a sequence of stems speaks of, in order, repeated as often as it does."""
    terms, lengths = _terms(), _lengths()
    names: list[str] = []
    for place, word in enumerate(found):
        longest = lengths.get(word)
        if longest:
            for length in range(1, longest + 1):
                names += terms.get(tuple(found[place : place + length]), ())
    return names
