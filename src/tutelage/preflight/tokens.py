"""Checks of what becomes of the words: templates, special tokens, loss masks, lengths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.core.words import Example, Message
from tutelage.models.heads import harmless_pad, plain_model
from tutelage.preflight.findings import Finding, of
from tutelage.preflight.setup import SOME_ROWS, Setup, answers_of, some
from tutelage.preflight.size import manifest_in
from tutelage.text.chat import encode, render, render_prompt, template_digest, template_of
from tutelage.text.mask import Row

MANY = 400  # prompts whose length is measured


def no_end(setup: Setup) -> Iterator[Finding]:
    assert setup.ends  # Blocked where there is none
    yield from ()


def vocabulary(setup: Setup) -> Iterator[Finding]:
    rows = plain_model(setup.loaded.model).get_input_embeddings().weight.shape[0]
    tokenizer = setup.tokenizer
    known = tokenizer.get_vocab()
    beyond = {token: at for token, at in known.items() if at >= rows}
    used = {at for whole, _ in setup.cut_rows for at in whole.token_ids} if setup.command not in ("classify", "span-reward") else set()
    used |= {at for at in (tokenizer.eos_token_id, tokenizer.bos_token_id) if at is not None}
    if setup.command in ("reward", "cost", "span-reward", "classify"):
        used.add(harmless_pad(tokenizer, plain_model(setup.loaded.model).config))  # what is saved pads with it
    broken = sorted(token for token, at in beyond.items() if at in used)
    reference = "transformers #10848, #12763; tokenizers #1609"
    if broken:
        yield Finding(
            code="vocabulary", cause=f"the tokenizer has {len(known)} tokens and the model rows for {rows}: "
                                     f"{', '.join(broken[:5])} would be read from beyond the end of the embedding",
            cure="use the tokenizer that the model was trained with, or enlarge the model with resize_token_embeddings and "
                 "save it",
            reference=reference)
    elif beyond:
        yield Finding(
            code="vocabulary", severity="warning",
            cause=f"{len(beyond)} tokens of the tokenizer have no row in the model's embedding "
                  f"({', '.join(sorted(beyond)[:5])}); none stands in the rows that were looked at",
            cure="use the tokenizer that the model was trained with", reference=reference)
    elif len(known) < rows / 2:
        yield Finding(
            code="vocabulary", severity="warning",
            cause=f"the tokenizer has {len(known)} tokens and the model rows for {rows}: it may be another model's",
            cure="use the tokenizer that the model was trained with", reference=reference)


def bos(setup: Setup) -> Iterator[Finding]:
    tokenizer = setup.tokenizer
    start = tokenizer.bos_token_id
    if start is None:
        return
    ids = encode(tokenizer, render(tokenizer, [Message(role="user", text="a")], answer_next=True))
    if ids[:2] == [start, start]:
        yield Finding(
            code="double-bos", cause=f"a rendered prompt begins with two {tokenizer.bos_token}: the template writes it twice, "
                                     "or the tokenizer adds one although it was told not to",
            cure="take bos_token out of the chat template once", reference="C4; OpenRLHF #393, axolotl #1616, reward-bench "
                                                                           "#164")
    elif start not in ids and start != tokenizer.eos_token_id and list(tokenizer("a")["input_ids"])[:1] == [start]:
        yield Finding(
            code="missing-bos", severity="warning",
            cause=f"the tokenizer begins plain texts with {tokenizer.bos_token}, and the chat template does not: the model was "
                  "probably trained with it",
            cure="begin the chat template with {{ bos_token }}", reference="C4; RLHF-Reward-Modeling #16")


def special_in_text(setup: Setup) -> Iterator[Finding]:
    tokenizer = setup.tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and len(token.content) > 2}
    texts = [text for record in some(setup.train, 4 * SOME_ROWS) for text in answers_of(record)]
    held = [text for text in texts if any(token in text for token in special)]
    if held:
        token = next(token for token in special if token in held[0])
        yield Finding(
            code="special-in-text", severity="error" if len(held) >= len(texts) / 20 else "warning",
            cause=f"{of(len(held), len(texts))} answers spell out special tokens ({token}), which become the real ones: a "
                  "second BOS, or a turn that ends in its middle",
            cure="import the data without their template: plain text in messages", reference="C4; axolotl #1616")


def template_changed(setup: Setup) -> Iterator[Finding]:
    """Against the digests that stand in our manifests; a model that is not ours has none."""
    now = template_digest(setup.tokenizer)
    then = setup.manifest.get("template")
    if then and then != now:
        yield _changed("the model", setup.config.model, then, now)
    for scorer in setup.scorers:
        then, now = manifest_in(scorer.path).get("template"), template_digest(scorer.tokenizer)
        if then and then != now:
            yield _changed(f"the {scorer.what}", scorer.path, then, now)


def _changed(what: str, name: str | Path, then: str, now: str) -> Finding:
    return Finding(
        code="template-changed", cause=f"{what} {name} was trained with the chat template {then}, and its tokenizer has {now} "
                                       "now: it would be asked in another format than it knows",
        cure="bring back the tokenizer files that were saved with it, or train it again with the new template",
        reference="C5; SimPO #24, open-r1 #473")


def template_mismatch(setup: Setup) -> Iterator[Finding]:
    for scorer in setup.scorers:
        theirs, what = scorer.tokenizer, scorer.what
        if theirs.get_vocab() != setup.tokenizer.get_vocab():
            continue  # a judge of another family reads with its own tokenizer and template, as it should (C37)
        if template_digest(theirs) != template_digest(setup.tokenizer):
            differ = "special tokens" if template_of(theirs) == template_of(setup.tokenizer) else "chat templates"
            yield Finding(
                code="template-mismatch",
                cause=f"policy and {what} ({scorer.key}={scorer.path}) share a vocabulary, and their {differ} differ: they see "
                      "the same conversation as different tokens",
                cure=f"train the {what} from the policy's own SFT model (tutelage {what.split()[0]} model=RUN), or bring the "
                     "templates into line",
                reference="C5; ms-swift #9160")


def critic_tokenizer(setup: Setup) -> Iterator[Finding]:
    theirs = next((scorer.tokenizer for scorer in setup.scorers if scorer.key == "reward"), None)  # of several it takes none
    if getattr(setup.config, "value", "") != "separate" or theirs is None:
        return
    if theirs.get_vocab() != setup.tokenizer.get_vocab():
        yield Finding(
            code="critic-tokenizer", severity="warning",
            cause="value is separate and the reward model has another tokenizer than the policy: the critic reads the policy's "
                  "tokens, so it begins from the policy's weights and not from the reward model's",
            cure="train the reward model from the policy's family, or set value=shared",
            reference="C37; safe-rlhf #109, #55")


def masks(setup: Setup) -> Iterator[Finding]:
    """Whether what should be trained on is, and nothing else."""
    records, rows, what, limit, raise_it = setup.taught
    empty = sum(not any(cut.trained() for _, cut in each) for each in rows)
    if empty >= max(1, len(rows) / 10):
        cut_away = sum(any(whole.trained() for whole, _ in each) and not any(cut.trained() for _, cut in each) for each in rows)
        why = f"{limit} cuts them away" if cut_away else "the template does not write the answers"
        yield Finding(
            code="empty-loss-mask", severity="error" if empty >= len(rows) / 2 else "warning",
            cause=f"{of(empty, len(rows))} {what} have no trained token: {why}",
            cure=raise_it if cut_away else "look at a row with `tutelage data inspect --tokens`, and mend the "
                                                     "template",
            reference="C6; marin #7237, trl #4879, transformers #34494")
    full = sum(not _asked(record) or any(_is_full(whole) for whole, _ in each)
               for record, each in zip(records, rows, strict=True))
    if getattr(setup.config, "loss", "") != "all" and full >= max(1, len(rows) / 10):
        yield Finding(
            code="full-loss-mask", severity="error" if full >= len(rows) / 2 else "warning",
            cause=f"{of(full, len(rows))} {what} are trained on from their first word: nothing is asked before the answer, so "
                  "the question may have been read as part of it",
            cure="import the data with question and answer in their own fields; if all tokens are wanted, say loss=all",
            reference="C6; Megatron-Bridge #3359, Automodel #832")


def _asked(record: Example) -> bool:
    """Whether anything is said before or between the answers."""
    return any(message.text.strip() for message in record.messages if message.role != "assistant")


def _is_full(row: Row) -> bool:
    """Whether all tokens are trained on (but the first, which has no predecessor)."""
    return bool(row.weights) and sum(weight == 0 for weight in row.weights) <= 1


def turn_ends(setup: Setup) -> Iterator[Finding]:
    _, taught, what, limit, raise_it = setup.taught
    rows = [(whole, cut) for each in taught for whole, cut in each if cut.trained()]  # those without a trained token: see `masks`
    if not rows:
        return
    never = sum(not _ends(whole, setup.ends) for whole, _ in rows)
    lost = sum(_ends(whole, setup.ends) and not _ends(cut, setup.ends) for whole, cut in rows)
    if never >= len(rows) / 10:
        yield Finding(
            code="untrained-turn-ends", cause=f"{of(never, len(rows))} {what} do not end with a token that ends an answer: the "
                                              "model will never learn to stop",
            cure="name the token that the template writes after a turn as eos_token, or let the template write eos_token there",
            reference="C7; trl #1623, #3091, #4970")
    elif lost >= len(rows) / 4:
        yield Finding(
            code="untrained-turn-ends", severity="error" if lost >= 0.95 * len(rows) else "warning",
            cause=f"{limit} cuts the end off {of(lost, len(rows))} {what}: those teach to go on where the answer should stop",
            cure=f"{raise_it} (the longest of these rows has {max(len(whole.token_ids) for whole, _ in rows)}), or drop "
                 "long rows",
            reference="C7; trl #1623, transformers #34494")


def _ends(row: Row, ends: frozenset[int]) -> bool:
    """Whether the last token is trained on and ends an answer."""
    return bool(row.token_ids) and row.weights[-1] > 0 and row.token_ids[-1] in ends


def after_cutting(setup: Setup) -> Iterator[Finding]:
    """Two answers that differ only behind max_tokens are one to the model; a prompt that was cut away is not read."""
    most = setup.config.max_tokens
    pairs = [setup.rows_of(pair) for pair in some(setup.pairs, SOME_ROWS)]
    alike = sum(chosen[0] != rejected[0] and chosen[1] == rejected[1] for chosen, rejected in pairs)
    if alike:
        yield Finding(
            code="identical-pairs", severity="error" if alike >= len(pairs) / 10 else "warning",
            cause=f"max_tokens={most} cuts chosen and rejected to the same tokens in {of(alike, len(pairs))} pairs",
            cure="raise max_tokens", reference="RLHF_CORRECTNESS 4.7; LLaMA-Factory #4402")
    lengths = [len(whole.token_ids) for whole, _ in setup.cut_rows]
    cut = sum(length > most for length in lengths)
    if cut >= max(1, len(lengths) / 4):
        yield Finding(
            code="prompt-too-long", severity="warning",
            cause=f"max_tokens={most} cuts {of(cut, len(lengths))} rows: the prompt loses its beginning, then the answer its "
                  "end",
            cure=f"raise max_tokens (the longest of these rows has {max(lengths)})", reference="C7; trl #2551")


def prompt_lengths(setup: Setup) -> Iterator[Finding]:
    limit = setup.config.max_prompt_tokens
    lengths = [len(render_prompt(setup.tokenizer, prompt)) for prompt in some(setup.prompts, MANY)]
    left_out = sum(length > limit for length in lengths)
    if left_out > len(lengths) / 2:
        yield Finding(
            code="prompt-too-long", severity="error" if left_out == len(lengths) else "warning",
            cause=f"{of(left_out, len(lengths))} prompts are longer than max_prompt_tokens={limit} and are left out",
            cure=f"raise max_prompt_tokens (half of them have {sorted(lengths)[len(lengths) // 2]} or fewer)")
    longest = max((length for length in lengths if length <= limit), default=0)
    if longest + setup.config.max_tokens > setup.context:
        yield _beyond(setup, f"the longest prompt has {longest} tokens, and an answer may have {setup.config.max_tokens}",
                      "lower max_tokens or max_prompt_tokens")


def context(setup: Setup) -> Iterator[Finding]:
    longest = max((len(cut.token_ids) for _, cut in setup.cut_rows), default=0)
    if longest > setup.context:
        yield _beyond(setup, f"the longest row has {longest} tokens after it was cut to max_tokens={setup.config.max_tokens}",
                      f"set max_tokens to {setup.context} or less")


def _beyond(setup: Setup, what: str, cure: str) -> Finding:
    return Finding(code="context", cause=f"{what}, and the model's context ends at {setup.context}: beyond it the model has no "
                                         "positions, or never saw them", cure=cure, reference="C2")


def pad_is_end(setup: Setup) -> Iterator[Finding]:
    """Of what is saved as a sequence classifier: transformers finds its last token by pad id."""
    config: Any = plain_model(setup.loaded.model).config
    pad = harmless_pad(setup.tokenizer, config)
    ends = {setup.tokenizer.eos_token_id} if setup.command in ("classify", "span-reward") else setup.ends
    if pad in ends:
        yield Finding(
            code="pad-is-end", severity="warning",
            cause=f"the tokenizer has no special token beside {setup.tokenizer.convert_ids_to_tokens(pad)!r}, so the saved "
                  "model must pad with the token that ends a text: programs that look for the last token by pad id will read "
                  "the score too early (Tutelage goes by position and does not)",
            cure="add a pad token to the tokenizer and a row for it to the model before training",
            reference="C1, C33; transformers #35352, trl #937, #6357")
