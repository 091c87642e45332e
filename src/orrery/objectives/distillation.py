"""Distillation: a student learns from what a frozen teacher says and thinks of the same text, beside the text itself.

Papers: soft targets 1503.02531; DistilBERT 1910.01108 (masked LM + soft targets + cosine); DistilCamemBERT 2205.11111; TinyBERT
    1909.10351 and Patient-KD 1908.09355 (maps of layers); MiniLMv2 2012.15828 (relations of queries, keys and values); attention:
    TinyBERT (scores), MobileBERT 2004.02984 and MiniLM 2002.10957 (probabilities).

Equation: with student S, teacher T, rows n that count, temperature s

    loss = hard * task(S)  +  soft * mean_n s^2 KL(p_T^s || p_S^s)  +  cosine * mean_t (1 - cos(W h_S, h_T)), last layers
         + hidden * sum_{(i,j)} mean_t |W h_S^i - h_T^j|^2 / D         with `normalise`: of unit vectors, not divided by D
         + attention * mean over relations of what is one of
             q, k, v         mean_{a,t} KL(R_T || R_S),   R = softmax(A A^T / sqrt(d)), A the last queries, keys, values
             scores          sum_{(i,j)} mean_{a,t,s} (A_S^i - A_T^j)^2,   A = Q K^T / sqrt(d) + bias
             probabilities   sum_{(i,j)} mean_{a,t} KL(P_T^j || P_S^i),    P = softmax(A);   "mean": of their mean over heads

W is the identity where widths are equal, else learnt with the student (one for the cosine, one for the embedding, one for the
layers; never part of the saved model). R is made for `relation_heads` heads a of width d, whatever heads the mixers have.

Relations need neither equally many heads nor the scores, and MiniLMv2 found them at least as good; they are functions of
queries, keys and values before rotation. Scores and probabilities are made beside the fused attention, which never holds them.

Shapes: B batch, T time, D width, V vocabulary, N rows.

Cost: the teacher's forward pass, and its head where soft > 0; both heads run on a chunk of rows at a time, so no batch of logits is
    held. Layers are kept only where hidden > 0; relations, scores and probabilities are made a few rows of the batch at a time, and
    again in the backward pass: 2 to 3 products of T^2 D for every layer that is compared, in both models.

Differs: Patient-KD compares the first token only, here every token does. TinyBERT's code takes its mean over padding as well, here
    it is over pairs of tokens that see each other. Means are over each term's own tokens: micro-batches add up
    to their batch where all terms count the same ones (not `everywhere` with few masked tokens).

Oracle: tests/oracles/distillation.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core import registry
from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.files import read_json
from orrery.core.registry import register
from orrery.models.folders import find_weights, open_folder, weights_hash
from orrery.models.layers import Heads, attending, depth_of, heads_of, read_layers
from orrery.models.output import Output
from orrery.models.reading import Reading, report
from orrery.models.scoring import before_last, last_layer, score, softcap
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE, CrossEntropy, cross_entropy, linear_cross_entropy
from orrery.ops.losses.relations import MATRICES, Scored, attention_distance, relation_divergence
from orrery.ops.losses.soft_targets import SoftTargets

MAPS = ("uniform", "skip", "last", "top")
RELATIONS = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """teacher: its folder (or none: give the model itself to `teach`). teacher_hash: of its weights, which must be these; "": any.
    task: settings of the student's own task (masked-lm's; of labels: weights). hard, soft, cosine, hidden, attention: weights of the
    terms. everywhere: a masked LM listens to the teacher at all tokens, not at the hidden ones only. layers: which pairs of layers
    `hidden` compares, and scores and probabilities where there are layers: uniform (TinyBERT), skip, last (Patient-KD), top (the last
    of both, MiniLM), or "1-4,2-8" (student-teacher, 0 the embedding). normalise: of hidden states, unit vectors. relations: of q, k,
    v, scores, probabilities, mean. relation_heads 0 (of q, k, v): as many as the teacher has, where that divides all widths.
    """

    teacher: str = ""
    teacher_hash: str = ""
    task: dict[str, Any] = field(default_factory=dict)
    hard: float = 0.5
    soft: float = 0.5
    temperature: float = 2.0
    cosine: float = 0.0
    hidden: float = 0.0
    layers: str = "uniform"
    normalise: bool = False
    attention: float = 0.0
    relations: tuple[str, ...] = RELATIONS
    relation_heads: int = 0
    everywhere: bool = False

    def __post_init__(self) -> None:
        terms = (self.hard, self.soft, self.cosine, self.hidden, self.attention)
        require(min(terms) >= 0 and max(terms) > 0, "weights of distillation's terms must be 0 or more, one of them above 0")
        require(self.temperature > 0, f"temperature must be above 0, not {self.temperature}")
        require(self.relation_heads >= 0, f"relation_heads must be 0 (the teacher's) or more, not {self.relation_heads}")
        kinds = (*RELATIONS, *MATRICES)
        known = bool(self.relations) and set(self.relations) <= set(kinds)
        require(known, f"relations must be some of {', '.join(kinds)}, not {', '.join(self.relations) or 'none'}")
        layer_pairs(self.layers, 12, 12)


def layer_pairs(rule: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """Which layer of the student learns from which of the teacher's; 0 is the embedding.

    Raises:
        ConfigError: for an unknown rule.
    """
    if rule == "uniform":  # 1909.10351, section 4: the embedding, and every layer with the one as far up
        return [(m, round(m * teacher / student)) for m in range(student + 1)]
    if rule == "skip":  # 1908.09355, section 3.2: every (teacher / student)-th; the last layer learns by the head
        return [(m, m * (teacher // student)) for m in range(1, student)]
    if rule == "top":  # 2002.10957
        return [(student, teacher)]
    if rule == "last":
        return [(m, teacher - student + m) for m in range(1, student)]
    try:
        pairs = [(int(a), int(b)) for a, _, b in (pair.partition("-") for pair in rule.split(","))]
    except ValueError:
        raise ConfigError(f"layers '{rule}' must be {', '.join(MAPS)}, or pairs student-teacher such as 1-4,2-8") from None
    return pairs


class Thought(NamedTuple):
    """What one of the two models made of a batch."""

    out: Output
    hidden: list[Tensor]  # empty where layers are not compared
    heads: Heads | None
    scored: dict[int, Scored]


class _Frozen:
    """A teacher beside the module tree: not trained, not moved, not saved and not copied with the student."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self


class _Distillation(nn.Module):
    """What the three tasks share. `objective(model, batch) -> (loss, metrics)`; a module, because maps between widths are learnt."""

    Config = DistillationConfig
    own: ClassVar[str] = ""  # the objective of the student's own task
    causal: ClassVar[bool] = False

    def __init__(self, config: DistillationConfig | None = None) -> None:
        super().__init__()
        self.config = config or DistillationConfig()
        self.frozen: _Frozen | None = None
        self.maps = nn.ModuleDict()
        self.met = False
        self.pairs: list[tuple[int, int]] = []
        self.scored: list[tuple[int, int]] = []  # layers counted from 0
        self.task: Any = None
        if self.own:
            cls = registry.load(self.own, "objective")
            self.task = cls(cls.Config.from_dict(self.config.task, where="task"))
        else:
            require(not self.config.task, "next-token distillation has no settings of a task")

    @property
    def unit(self) -> str:
        """Of "loss", for people."""
        return "nats per target" if self.config.hard or self.config.soft else "of all terms (no nats: nothing is predicted)"

    def teach(self, teacher: nn.Module) -> None:
        """Take a model as the teacher; it is frozen, and put into evaluation mode for good."""
        self.frozen, self.met = _Frozen(teacher), False

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher.

        Raises:
            ConfigError: there is none.
        """
        if self.frozen is None:
            raise ConfigError("distillation needs a teacher: teacher=FOLDER, or objective.teach(model)")
        return self.frozen.model

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Read the teacher, see that both fit together, and draw the maps between their widths.

        Raises:
            ConfigError, StorageError: no teacher, another one than before, or one that does not fit the student.
        """
        if self.frozen is None and self.config.teacher:
            self.teach(open_teacher(self.config.teacher, self.config.teacher_hash, tokenizer))
        teacher = self.teacher
        if self.met:
            return
        self._check(model, teacher)
        if self.task is not None and hasattr(self.task, "meet"):
            self.task.meet(model, tokenizer)
        home = next(model.parameters())
        teacher.to(home.device)
        config = self.config
        sizes = [int(cast(Any, each).config.width) for each in (model, teacher)] if config.cosine or config.hidden else [0, 0]
        kinds = set(config.relations) if config.attention else set()
        self.pairs = []
        if config.hidden or kinds & set(MATRICES):
            self.pairs = layer_pairs(config.layers, depth_of(model), depth_of(teacher))
            for own, theirs in self.pairs:
                fits = 0 <= own <= depth_of(model) and 0 <= theirs <= depth_of(teacher)
                require(fits, f"there is no pair of layers {own}-{theirs}: the student has {depth_of(model)}, the teacher {depth_of(teacher)}")
            require(bool(self.pairs), f"layers={config.layers} pairs no layers of a student with {depth_of(model)}")
        self.scored = [(own - 1, theirs - 1) for own, theirs in self.pairs if own and theirs] if kinds & set(MATRICES) else []
        require(bool(self.scored) or not kinds & set(MATRICES), f"layers={config.layers} pairs no layers whose attention could be compared")
        for own, theirs in self.scored:
            self._check_attention(heads_of(model, own), heads_of(teacher, theirs), own + 1, theirs + 1)
        if sizes[0] != sizes[1]:
            wanted = [name for name, weight in (("last", config.cosine), ("layers", config.hidden)) if weight]
            wanted += ["embedding"] if config.hidden and any(own == 0 for own, _ in self.pairs) else []
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                for name in wanted:
                    self.maps[name] = nn.Linear(sizes[0], sizes[1], bias=False).to(home.device, home.dtype)
        self.met = True

    def _check_attention(self, student: tuple[int, int | None], teacher: tuple[int, int | None], own: int, theirs: int) -> None:
        """See that two layers, of these heads and windows, can be compared."""
        pair = f"layer {own} of the student and layer {theirs} of the teacher"
        require(student[1] == teacher[1], f"{pair} see windows of {student[1]} and {teacher[1]} tokens; compare layers that see the same")
        apart = {"scores", "probabilities"} & set(self.config.relations)
        require(
            not apart or student[0] == teacher[0],
            f"{pair} have {student[0]} and {teacher[0]} heads, which {' and '.join(sorted(apart))} compare one by one (1909.10351, "
            "2002.10957); give both as many, or set relations to mean, or to q, k, v",
        )

    def _check(self, model: nn.Module, teacher: nn.Module) -> None:
        own, theirs = (int(getattr(each, "vocab_size", 0)) for each in (model, teacher))
        require(own == theirs, f"the student knows {own} ids and the teacher {theirs}; both must have the same tokenizer")

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch as the student's own task takes it.

        Returns:
            The loss, and "loss" of the student's own task alone (of everything where hard and soft are 0), "tokens", and every
            term that takes part: "soft", "cosine", "hidden", "attention".
        """
        self.meet(model)
        view = self.view(model, batch)
        aux, config = Aux(), self.config
        student = self._read(model, view, aux, [own for own, _ in self.scored])
        with torch.no_grad():
            taught = self._read(self.teacher, view, None, [theirs for _, theirs in self.scored])
        terms: dict[str, Tensor] = {}
        loss, metrics = self._answers(model, student, taught, view, terms)
        segments: Tensor | None = view.get("segments")
        here = torch.ones_like(view["tokens"], dtype=torch.bool) if segments is None else segments >= 0
        here = self._counted(here, view)
        if config.cosine:
            own = self._mapped("last", student.out.hidden[here])
            terms["cosine"] = 1 - F.cosine_similarity(own, taught.out.hidden[here].to(own.dtype), dim=-1).mean()
        if config.hidden:
            terms["hidden"] = self._layers(student, taught, here)
        if config.attention:
            terms["attention"] = self._attention(student, taught, segments, here)
        for name, value in terms.items():
            loss = loss + getattr(config, name) * value
            metrics[name] = value.detach()
        if not (config.hard or config.soft):
            metrics["loss"] = loss.detach()
        for name, value in aux.losses.items():
            loss = loss + value
            metrics[f"aux/{name}"] = value.detach()
        return loss, metrics

    def view(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """What both models read and are asked for: "tokens", and where there are, "segments", "types", "targets"."""
        raise NotImplementedError(f"{type(self).__name__} must define view(model, batch)")

    def _answers(
        self, model: nn.Module, student: Thought, taught: Thought, view: dict[str, Any], terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The hard and soft terms, weighed, and the metrics of the student's own task."""
        raise NotImplementedError(f"{type(self).__name__} must define _answers(model, student, taught, view, terms)")

    def _counted(self, here: Tensor, view: dict[str, Any]) -> Tensor:
        """Which tokens (B,T) hidden states are compared at."""
        return here

    def _read(self, model: nn.Module, view: dict[str, Any], aux: Aux | None, scored: list[int]) -> Thought:
        """Let a model read, layer by layer where layers are compared."""
        tokens, segments = view["tokens"], view.get("segments")
        types = view.get("types") if getattr(getattr(getattr(model, "config", None), "embedding", None), "types", 0) else None
        if self.config.hidden or self.config.attention:
            related = self.config.attention and set(self.config.relations) & set(RELATIONS)
            return Thought(*read_layers(model, tokens, segments, types, aux, attending(model) if related else None, scored))
        more = {} if types is None else {"types": types}
        return Thought(model(tokens, ctx=Context(aux=aux), segments=segments, **more), [], None, {})

    def _mapped(self, name: str, hidden: Tensor) -> Tensor:
        return self.maps[name](hidden) if name in self.maps else hidden

    def _layers(self, student: Thought, taught: Thought, here: Tensor) -> Tensor:
        found = []
        for own, theirs in self.pairs:
            a = self._mapped("layers" if own else "embedding", student.hidden[own][here])
            b = taught.hidden[theirs][here].to(a.dtype)
            if self.config.normalise:
                found.append((F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean())
            else:
                found.append(F.mse_loss(a, b))
        return torch.stack(found).sum()

    def _attention(self, student: Thought, taught: Thought, segments: Tensor | None, here: Tensor) -> Tensor:
        """Mean over relations; those of attention itself are summed over layers, as the papers have it."""
        marks = torch.zeros_like(here, dtype=torch.int64) if segments is None else segments
        found = []
        if student.heads is not None and taught.heads is not None:
            found += self._relations(student.heads, taught.heads, marks, here)
        for form in (name for name in self.config.relations if name in MATRICES):
            each = [attention_distance(student.scored[i], taught.scored[j], form, marks, here, self.causal) for i, j in self.scored]
            found.append(torch.stack(each).sum())
        return torch.stack(found).mean()

    def _relations(self, own: Heads, theirs: Heads, marks: Tensor, here: Tensor) -> list[Tensor]:
        kinds = [RELATIONS.index(name) for name in self.config.relations if name in RELATIONS]
        sizes = [each[kind].shape[-1] for each in (own, theirs) for kind in kinds]
        heads = self.config.relation_heads
        if not heads:
            mixer = cast(Any, self.teacher).blocks[attending(self.teacher)].mixer
            heads = next(count for count in range(int(mixer.heads), 0, -1) if all(size % count == 0 for size in sizes))
        require(
            all(size % heads == 0 for size in sizes),
            f"relation_heads {heads} must divide the widths of queries, keys and values, {sorted(set(sizes))}",
        )
        return [relation_divergence(own[kind], theirs[kind], heads, marks, here, self.causal) for kind in kinds]


class _Vocabulary(_Distillation):
    """A student that predicts tokens."""

    def _answers(
        self, model: nn.Module, student: Thought, taught: Thought, view: dict[str, Any], terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        config, targets = self.config, view["targets"]
        reading = Reading(student.out, targets, IGNORE, Aux(), False)
        if not config.soft:
            if not config.hard:
                return student.out.hidden.sum() * 0.0, {"loss": torch.zeros(()), "tokens": (targets != IGNORE).sum()}
            loss, metrics = report(reading, score(model, student.out, targets))
            return config.hard * loss, metrics
        asked = targets != IGNORE
        segments: Tensor | None = view.get("segments")
        if config.everywhere:
            asked = torch.ones_like(asked) if segments is None else segments >= 0
        labels, rows = targets[asked], int(asked.sum())
        count = (labels != IGNORE).sum()
        theirs, head = taught.out.hidden[asked], cast(Any, self.teacher).head

        @torch.no_grad()
        def teach(first: int, last: int) -> Tensor:
            if isinstance(head, nn.Module):
                return head(theirs[None, first:last])[0]
            return cast(Tensor, taught.out.logits)[asked][first:last]

        both = SoftTargets(teach, labels, config.temperature, config.hard / max(1, int(count)), config.soft / max(1, rows))
        result = _both(model, student.out, asked, labels, both)
        terms_value = both.divergence.detach() / max(1, rows)
        found, metrics = report(reading, CrossEntropy(result.loss, result.nats, count))
        metrics["soft"] = terms_value
        return found, metrics


def _both(model: nn.Module, out: Output, asked: Tensor, labels: Tensor, loss: SoftTargets) -> CrossEntropy:
    """The fused pass of the student's head over the rows that are asked for (B,T)."""
    head: Any = getattr(model, "head", None)
    options: dict[str, Any] = {"reduction": "sum", "ignore_index": None, "loss": loss}
    zeros = labels.clamp(min=0)
    last = last_layer(head)
    if last is None:
        if out.logits is None:
            raise ConfigError(f"{type(model).__name__} has no head, so it cannot predict tokens")
        return cross_entropy(out.logits[asked], zeros, **options)
    rows = before_last(head, out.hidden[asked])
    return linear_cross_entropy(rows, last.weight, zeros, bias=last.bias, softcap=softcap(last), **options)


class DistilledNextToken(_Vocabulary):
    """A causal student: next-token prediction and the teacher's distributions of the next token."""

    causal = True

    def view(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        tokens: Tensor = batch["tokens"]
        segments: Tensor | None = batch.get("segments")
        if "targets" in batch:
            return dict(batch)
        targets = tokens[:, 1:]
        if segments is None:
            return {"tokens": tokens[:, :-1], "targets": targets}
        return {"tokens": tokens[:, :-1], "segments": segments[:, :-1], "targets": targets.masked_fill(segments[:, 1:] < 0, IGNORE)}

    def _counted(self, here: Tensor, view: dict[str, Any]) -> Tensor:
        return here & (view["targets"] != IGNORE)


class DistilledMaskedLM(_Vocabulary):
    """A masked student: both models read the same corrupted text."""

    own = "masked-lm"

    def view(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        segments: Tensor | None = batch.get("segments")
        hidden, targets = self.task.corrupt(batch["tokens"], segments, int(cast(Any, model).vocab_size))
        return {"tokens": hidden, "targets": targets} | ({} if segments is None else {"segments": segments})


class DistilledLabels(_Distillation):
    """A student with a task's head, of a teacher with the same head."""

    own = "labelled"

    def _check(self, model: nn.Module, teacher: nn.Module) -> None:
        super()._check(model, teacher)
        own, theirs = (_head_of(each) for each in (model, teacher))
        require(own[:2] == theirs[:2], f"the student's head is {own[0]} of {own[1]} labels, the teacher's {theirs[0]} of {theirs[1]}")
        require(own[2] == theirs[2] or not (own[2] and theirs[2]), "the labels of student and teacher have other names, or another order")
        require(not own[3] and not theirs[3], "a CRF scores whole sequences, which have no soft targets of their own; leave crf off")

    def view(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        return dict(batch)

    def _answers(
        self, model: nn.Module, student: Thought, taught: Thought, view: dict[str, Any], terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        own, theirs, head = student.out.logits, taught.out.logits, cast(Any, model).head
        assert own is not None and theirs is not None
        targets, segments = view["targets"], view.get("segments")
        weights = torch.tensor(self.task.config.weights, device=targets.device) if self.task.config.weights else None
        hard = head.loss(own, targets, segments, weights)
        count = (targets != IGNORE).sum() if targets.dtype == torch.int64 else torch.tensor(len(targets))
        if self.config.soft:
            terms["soft"] = label_divergence(_head_of(model)[0], own, theirs.to(own.dtype), targets, self.config.temperature)
        return self.config.hard * hard, {"loss": hard.detach(), "tokens": count}


def label_divergence(kind: str, own: Tensor, theirs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """How far the student's answers are from the teacher's, mean over what is answered.

    Classes: s^2 KL. Several labels: s^2 KL of every label's yes and no, summed over labels. Numbers: squared difference.
    """
    if kind == "regression" or (kind == "pairs" and own.dim() == 1):
        return F.mse_loss(own, theirs)
    if targets.dtype == torch.int64 and kind != "multi-label":
        asked = targets != IGNORE if targets.dim() == 1 or kind == "tagging" else targets[:, 0] != IGNORE
        own, theirs = own[asked], theirs[asked]
    if kind == "span":  # places compete: (B,T,2) -> (B,2,T)
        own, theirs = own.transpose(1, 2), theirs.transpose(1, 2)
    elif kind == "multi-label":
        own, theirs = (torch.stack([each, torch.zeros_like(each)], -1) for each in (own, theirs))
    elif kind not in ("classification", "ordinal", "tagging", "pairs", "multiple-choice"):
        raise ConfigError(f"the head '{kind}' has no answers that could be distilled")
    a, b = (torch.log_softmax(each / temperature, -1) for each in (own, theirs))
    divergence = temperature**2 * (b.exp() * (b - a)).sum(-1)
    return divergence.sum(-1).mean() if kind == "multi-label" else divergence.mean()


def _head_of(model: nn.Module) -> tuple[str, int, tuple[str, ...], bool]:
    """Kind, labels, their names, and whether a CRF chains them."""
    config = getattr(getattr(model, "head", None), "config", None)
    if config is None or not hasattr(cast(Any, model).head, "loss"):
        raise ConfigError(f"{type(model).__name__} has no head that answers with labels")
    spec = getattr(cast(Any, model).config, "head", None)
    name = spec["name"] if isinstance(spec, dict) else type(cast(Any, model).head).__name__.lower()
    return str(name), int(config.labels), tuple(config.names), bool(getattr(config, "crf", False))


def open_teacher(folder: str, wanted: str = "", tokenizer: Any = None) -> nn.Module:
    """A teacher from its folder.

    Args:
        wanted: the hash of its weights that a run began with; "": any.
        tokenizer: the student's, where there is one.

    Raises:
        ConfigError: other weights than wanted, or another tokenizer beside them.
        StorageError: there is no teacher there.
    """
    if not Path(folder).expanduser().is_dir():
        raise ConfigError(f"there is no teacher in '{folder}'; put its folder back where it was, or begin another run")
    found = weights_hash(folder)
    if wanted and found != wanted:
        raise ConfigError(
            f"the teacher in '{folder}' has changed: its weights are {found}, this run began with {wanted}; put those back, or begin another run"
        )
    description = find_weights(folder) / "tokenizer" / "orrery-tokenizer.json"
    if tokenizer is not None and description.is_file() and read_json(description).get("hash") != tokenizer.hash:
        raise ConfigError(
            f"the teacher in '{folder}' reads ids of another tokenizer than '{tokenizer.name}'; a student must have its teacher's"
        )
    return open_folder(folder)[0]


register(
    "distilled-next-token",
    objective="DistilledNextToken",
    summary="next-token prediction with a frozen teacher: logits, hidden states, attention",
    paper="1503.02531",
    year=2015,
    tags=("causal", "teacher"),
)
register(
    "distilled-masked-lm",
    objective="DistilledMaskedLM",
    summary="masked LM with a frozen teacher (DistilBERT, DistilCamemBERT, TinyBERT, MiniLM)",
    paper="1910.01108",
    year=2019,
    tags=("bidirectional", "stochastic", "teacher"),
)
register(
    "distilled-labels",
    objective="DistilledLabels",
    summary="labelled texts with a frozen teacher that has the same head",
    paper="1503.02531",
    year=2015,
    tags=("bidirectional", "labels", "teacher"),
)
