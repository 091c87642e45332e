"""Our causal models in EleutherAI's lm-evaluation-harness: an `LM` of theirs that asks a model of ours.

    from lm_eval import simple_evaluate
    from orrery.evaluate.harness import harness_model
    results = simple_evaluate(harness_model(orrery.load("runs/first/weights")), tasks=["blimp"])

Needs the extra `eval`. All three kinds of request are answered: `loglikelihood`, `loglikelihood_rolling`, `generate_until`.
Every context begins with the document's mark, as the model's training texts did. Rolling likelihoods read windows of
`length` tokens, each behind the token before it; the last begins earlier, so that it is as long, as the harness has it.

B batch, T time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.core.progress import progress
from orrery.data.tokenizers import Tokenizer
from orrery.generate.engine import generate, saved_tokenizer
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairFrame
from orrery.models.output import Output
from orrery.models.scoring import nats

TOKENS = 4096  # of one call
LENGTH = 2048  # of a window, for models that set no limit
NEW_TOKENS = 256
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KNOWN = {"until", "max_gen_toks", "max_new_tokens", "do_sample", *_SAMPLING}

Likelihood = tuple[float, bool]


def harness_model(
    model: nn.Module,
    tokenizer: Tokenizer | None = None,
    *,
    length: int = 0,
    tokens: int = TOKENS,
    seed: int = 0,
    quiet: bool = True,
) -> Any:
    """An `lm_eval.api.model.LM` that `simple_evaluate` takes.

    Args:
        model: a causal one. tokenizer: of its texts; default: the one saved beside it.
        length: most tokens of a context with its continuation; longer ones lose their beginning. 0: what the model can read.
        tokens: of one call of the model. seed: of drawn generations.

    Raises:
        ConfigError: lm-eval is not installed, or a model that predicts no next token.
    """
    if isinstance(model, Encoder | PairFrame):
        raise ConfigError(f"'{model.config.architecture}' predicts no next token; the harness asks causal models")
    tokenizer = tokenizer or saved_tokenizer(model)
    assert tokenizer is not None
    if tokenizer.vocab_size > int(getattr(model, "vocab_size", tokenizer.vocab_size)):
        raise ConfigError(
            f"the tokenizer makes {tokenizer.vocab_size} ids, more than the model knows; use the one it was trained with"
        )
    table = getattr(model, "position_embed", None)
    limit = table.num_embeddings if isinstance(table, nn.Embedding) else LENGTH
    return _adapter()(_Asked(model, tokenizer, min(length or limit, limit), tokens, seed, quiet))


class _Asked:
    """The answers, without anything of the harness."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, length: int, tokens: int, seed: int, quiet: bool
    ) -> None:
        self.model, self.tokenizer, self.length = model, tokenizer, length
        self.tokens, self.seed, self.quiet = tokens, seed, quiet
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        """Log-probability of every continuation after its context, and whether it is what greedy decoding would write."""
        rows = []
        for context, continuation in pairs:
            begun = context if context[:1] == [self.tokenizer.doc_id] else [self.tokenizer.doc_id, *context]
            whole = [*begun, *continuation]
            if len(continuation) > self.length:
                raise ConfigError(
                    f"a continuation of {len(continuation)} tokens does not fit into the {self.length} that are read"
                )
            rows.append((whole[-(self.length + 1) :], len(continuation)))
        found: list[Likelihood] = [(0.0, True)] * len(rows)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), progress(len(rows), "likelihoods", "requests", quiet=self.quiet) as bar:
                for part in self._parts([len(ids) for ids, _ in rows]):
                    for place, answer in zip(part, self._score([rows[i] for i in part]), strict=True):
                        found[place] = answer
                    bar.update(len(part))
        finally:
            self.model.train(training)
        return found

    def rolling(self, text: str) -> float:
        """Log-probability of a whole text, in windows that cover every token once."""
        ids = self.tokenizer.encode(text).tolist()
        before = [self.tokenizer.doc_id, *ids]
        ends = [min(start + self.length, len(ids)) for start in range(0, len(ids), self.length)]
        rows = [(before[max(0, end - self.length) : end + 1], end - self.length * number) for number, end in enumerate(ends)]
        return float(sum(self._window(rows)))

    def write(self, prompts: list[str], asked: dict[str, Any]) -> list[str]:
        """Continuations until a stop string, which is not part of them."""
        if unknown := sorted(set(asked) - _KNOWN):
            raise ConfigError(
                f"the model cannot be asked to generate with '{unknown[0]}'; it knows {', '.join(sorted(_KNOWN))}"
            )
        stop = asked.get("until") or []
        count = int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or min(NEW_TOKENS, self.length // 2))
        if count >= self.length:
            raise ConfigError(f"{count} new tokens leave no room for a prompt in the {self.length} that are read; ask for fewer (max_gen_toks)")
        options = {key: asked[key] for key in _SAMPLING if asked.get(key) is not None}
        if not asked.get("do_sample", options.get("temperature", 0.0) > 0):
            options = {"temperature": 0.0}
        room = self.length - count
        cut = [self._last(prompt, room) for prompt in prompts]
        stops = [stop] if isinstance(stop, str) else list(stop)
        return list(generate(self.model, cut, count, stop=stops, seed=self.seed, tokenizer=self.tokenizer, **options))

    def _last(self, prompt: str, room: int) -> str:
        ids = self.tokenizer.encode(prompt)
        return prompt if len(ids) < room else self.tokenizer.decode(ids[-(room - 1) :].tolist() if room > 1 else [])

    def _window(self, rows: list[tuple[list[int], int]]) -> list[float]:
        """Log-probability of the last `count` ids of every row."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return [
                    one[0]
                    for part in self._parts([len(ids) for ids, _ in rows])
                    for one in self._score([rows[i] for i in part])
                ]
        finally:
            self.model.train(training)

    def _parts(self, lengths: list[int]) -> list[list[int]]:
        parts: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            if not parts or (len(parts[-1]) + 1) * lengths[index] > self.tokens:
                parts.append([])
            parts[-1].append(index)
        return parts

    def _score(self, rows: list[tuple[list[int], int]]) -> list[Likelihood]:
        """Rows of ids, of which the last `count` are asked for; padding stands behind, where nothing reaches."""
        width = max(len(ids) for ids, _ in rows)
        tokens, wanted = (
            torch.zeros(len(rows), width, dtype=torch.int64),
            torch.zeros(len(rows), width - 1, dtype=torch.bool),
        )
        for number, (ids, count) in enumerate(rows):
            tokens[number, : len(ids)] = torch.tensor(ids)
            wanted[number, len(ids) - 1 - count : len(ids) - 1] = True
        tokens, wanted = tokens.to(self.device), wanted.to(self.device)
        out = self.model(tokens[:, :-1])
        targets = tokens[:, 1:][wanted]
        each = torch.zeros(wanted.shape, dtype=torch.float64, device=self.device)
        right = torch.ones(wanted.shape, dtype=torch.bool, device=self.device)
        each[wanted], right[wanted] = self._rows(out, wanted, targets)
        return [(-float(nat), bool(all_right)) for nat, all_right in zip(each.sum(1), right.all(1), strict=True)]

    def _rows(self, out: Any, wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of the targets, and whether each is the likeliest token."""
        head = getattr(self.model, "head", None)
        if not isinstance(head, nn.Module):
            logits = out.logits[wanted].double()
            return -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0], logits.argmax(-1) == targets
        hidden = out.hidden[wanted][None]
        best = [head(chunk[None])[0].argmax(-1) for chunk in hidden[0].split(256)]
        return nats(self.model, Output(hidden, None), targets[None])[0].double(), torch.cat(best) == targets


@functools.cache
def _adapter() -> Any:
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise ConfigError("lm-evaluation-harness is not installed; pip install 'orrery-lm[eval]'") from error

    class OrreryLM(TemplateLM):  # type: ignore[misc, unused-ignore]
        """A model of ours behind the harness's interface."""

        def __init__(self, asked: _Asked) -> None:
            super().__init__()
            self.asked = asked
            self._device = asked.device

        @property
        def eot_token_id(self) -> int:
            return self.asked.tokenizer.doc_id

        @property
        def max_length(self) -> int:
            return self.asked.length

        @property
        def tokenizer_name(self) -> str:
            return f"orrery-{self.asked.tokenizer.hash}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
            return list(self.asked.tokenizer.encode(string).tolist())

        def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False) -> list[Likelihood]:
            found = self.asked.likelihoods([(context, continuation) for _, context, continuation in requests])
            for (key, _, _), answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", key, answer)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            found = [self.asked.rolling(request.args[0]) for request in requests]
            for request, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
            found = [""] * len(requests)
            for numbers in groups.values():
                for start in range(0, len(numbers), 16):
                    part = numbers[start : start + 16]
                    texts = self.asked.write([requests[i].args[0] for i in part], dict(requests[part[0]].args[1]))
                    for place, text in zip(part, texts, strict=True):
                        found[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
            return found

    return OrreryLM
