"""Answers drawn by a vLLM server that is given the trainer's weights, under the protocol of the engine on this machine.

The server (https://docs.vllm.ai) runs apart, on this machine or on one that sees the same folder:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs

Before the answers of a step, weights that have changed are written to a folder (adapters merged), and the server is told to read
them in place (`POST /collective_rpc`, `reload_weights`) and to forget the prompts that it has seen (`POST /reset_prefix_cache`);
both are open in its dev mode alone.  Prompts and answers travel as token ids, log-probs are the server's own: another program in
another precision drew them, so the trainer corrects for it (RLHF_CORRECTNESS C9).
"""

import math
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.core.errors import UserError
from tutelage.models.heads import plain_model
from tutelage.models.load import save_files
from tutelage.models.lora import merged_state
from tutelage.remote.address import read_address
from tutelage.remote.openai_client import OpenAIEngine, seed_of
from tutelage.remote.pool import as_finished
from tutelage.remote.wire import Refused, Wire
from tutelage.rollout.decode import Job, Row
from tutelage.rollout.local import LocalEngine

PROBED = 4  # answers after each change of weights that are scored here, too
APART = 0.3  # mean |trainer / sampler probability - 1| of their tokens above which the server has other weights; rounding makes 0.04
HOW = ("start it as VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs; the variable opens the endpoints "
       "through which it is given weights")


class VLLMEngine(LocalEngine):
    """An `Engine` (core/protocols.py): answers come from the server, `score` from the model here."""

    def __init__(self, address: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, policy: str, exchange: Path | str,
                 at_once: int = 64):
        """address: "http://host:8000/v1", or with "#model" where it serves several.  exchange: a folder that the server sees under
        the same path; weights are written there.  at_once: requests under way at one time.  A key is read from OPENAI_API_KEY of the
        environment, as for any address."""
        super().__init__(model, tokenizer, policy=policy)
        self.apart = True
        self.address, self.exchange, self.at_once = read_address(address), Path(exchange).resolve(), at_once
        found = OpenAIEngine(address)
        self.served = found.model
        found.close()
        key = os.environ.get("OPENAI_API_KEY", "")
        self._answers = Wire(self.address.base, key=key, connections=at_once)
        self._weights = Wire(self.address.base.removesuffix("/v1"), key=key, connections=1)
        self._syncs = 0

    def refresh(self) -> None:
        """The next answers are drawn with the weights as they are then."""
        self._seen = []

    def close(self) -> None:
        """Take away what was written to the exchange folder."""
        shutil.rmtree(self.exchange, ignore_errors=True)
        self._answers.close()
        self._weights.close()

    def _draw(self, jobs: Sequence[Job]) -> Iterator[Row]:
        probe = self._sync()
        first: list[Row] = []
        for row in as_finished(self._ask, (row for job in jobs for row in job.begin(job.count)), threads=self.at_once):
            if probe and len(first) < PROBED:
                first.append(row)
                if len(first) == PROBED:
                    self._compare(first)
            yield row
        if probe and len(first) < PROBED:
            self._compare(first)

    def _ask(self, row: Row) -> Row:
        sampling = row.sampling
        body = {
            "model": self.served, "prompt": row.prompt_ids, "max_tokens": row.budget, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "top_k": sampling.top_k or -1, "stop": list(sampling.stop),
            "seed": seed_of(sampling, row.prompt.id, row.index), "stop_token_ids": sorted(self.ends),
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False, "include_stop_str_in_output": True}
        found = self._answers.post("/completions", body, spread=row.index / max(1, sampling.n))
        try:
            choice = found["choices"][0]
            row.token_ids, row.logps = list(choice["token_ids"]), [float(each) for each in choice["logprobs"]["token_logprobs"]]
            row.finish = {"stop": "stop", "length": "length"}[choice["finish_reason"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{self.address.base} gave no token ids and log-probs with its answer (missing or strange: {error}); a "
                            f"current vLLM server does (0.32 was tried). {HOW}") from error
        if len(row.token_ids) != len(row.logps) or not row.token_ids or not all(map(math.isfinite, row.logps)):
            raise UserError(f"{self.address.base} answered with {len(row.token_ids)} token ids and {len(row.logps)} log-probs, wanted as "
                            "many finite ones of each, and at least one; look at the server's log")
        return row

    # -- weights ---------------------------------------------------------------------------------------------------

    def _sync(self) -> bool:
        """Whether the server had to be given other weights."""
        now = self._versions()
        if now == self._seen:
            return False
        if not self._syncs:  # a run that was killed may have left some
            shutil.rmtree(self.exchange, ignore_errors=True)
        self._syncs += 1
        folder, plain = self.exchange / f"weights-{self._syncs}", plain_model(self.model)
        save_files(folder, lambda scratch: plain.save_pretrained(scratch, state_dict=merged_state(plain)), manifest={"kind": "exchange"})
        self._tell("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        if self._tell("/reset_prefix_cache", {}).get("success") is False:
            raise UserError(f"{self.address.base} could not forget the prompts of its old weights: it is answering somebody else; "
                            "give the run a server of its own")
        for old in self.exchange.glob("weights-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        self._seen = now
        return True

    def _tell(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._weights.post(path, body)
        except Refused as refusal:
            if refusal.status == 404:
                raise UserError(f"{self.address.base} takes no weights ({path} is not there); {HOW}") from refusal
            raise UserError(f"{refusal}; the server must see {self.exchange} under this path, and serve the model that is trained, "
                            "in its own shape and unquantised") from refusal

    def _compare(self, rows: Sequence[Row]) -> None:
        """UserError where the server draws from another policy than the one here, beyond what rounding makes."""
        rows = [row for row in rows if row.sampling.temperature > 0 and row.sampling.top_p >= 1 and not row.sampling.top_k]
        if not rows:
            return
        temperature = rows[0].sampling.temperature
        ours = self.score_ids([row.prompt_ids + row.token_ids for row in rows], [len(row.prompt_ids) for row in rows],
                              temperature=temperature)
        gap = statistics.fmean(abs(math.expm1(min(here - there, 50.0)))
                               for row, mine in zip(rows, ours, strict=True) for here, there in zip(mine, row.logps, strict=True))
        if gap > APART:
            raise UserError(f"{self.served} at {self.address.base} is not the policy that is trained: of the same tokens, the two differ "
                            f"by {100 * gap:.0f} % in probability at temperature {temperature:g}. {HOW}")
