"""A user's reward function for the kill tests: it draws from torch's generator and leaves a line for each question asked."""

import json
import os

import torch


def score(prompts, responses):
    """Distinct characters and a little noise; what was asked at which step goes to the file that KILL_ASKED names."""
    step = responses[0].sampling.step
    if step < 2**31:  # above that stands the normalisation before the first step
        note(step + 1, [[prompt.id, response.index] for prompt, response in zip(prompts, responses, strict=True)])
    noise = torch.rand(len(responses)).tolist()  # not restored on resume, it would change the weights
    return [len(set(response.text)) / 10 + draw for response, draw in zip(responses, noise, strict=True)]


def note(step, asked):
    """One line, in one write, so that a kill leaves all of it or nothing."""
    handle = os.open(os.environ["KILL_ASKED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, (json.dumps({"step": step, "asked": asked}) + "\n").encode())
    finally:
        os.close(handle)
