"""The server of the usual tutorial: FastAPI around transformers' `generate`, one request at a time.

Runs in its own environment. Prints its address when it serves.

usage: python -m peers.tutorial_server CHECKPOINT
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peers.lifetime import die_with_parent

DIRECTORY = Path(sys.argv[1])

tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.bfloat16).eval()
app = FastAPI()
lock = threading.Lock()


class Completion(BaseModel):
    """The request's fields that are read."""

    prompt: str
    max_tokens: int


@app.post("/v1/completions")
def complete(request: Completion) -> dict:
    """Waits for its turn, generates greedily, answers as a whole."""
    with lock, torch.inference_mode():
        given = tokenizer(request.prompt, return_tensors="pt")
        made = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=request.max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    prompt_tokens = given["input_ids"].shape[1]
    answer = made[0, prompt_tokens:]
    return {
        "object": "text_completion",
        "model": DIRECTORY.name,
        "choices": [{"index": 0, "text": tokenizer.decode(answer), "finish_reason": "length"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(answer)},
    }


if __name__ == "__main__":
    die_with_parent()
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
