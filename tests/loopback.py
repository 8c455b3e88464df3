"""A real HTTP server on 127.0.0.1 that speaks /v1/chat/completions, with faults on a plan: what judges are tested on.

    with Loopback(faults=0.3) as server:
        server.url, server.calls

    python tests/loopback.py URLFILE [--faults 0.3] [--model FOLDER]     GET /calls tells how many there were

What it answers is a function of the request (`script`), what goes wrong with it a function of the request and of how
often it came. Nothing is drawn from a clock, so whatever a test sees it sees again.
"""

import argparse
import contextlib
import hashlib
import json
import math
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = ("429", "500", "timeout", "torn", "cut", "refusal", "no_logprobs", "nan")
SORRY = "I'm sorry, but I can't help with that."


class HttpError(Exception):
    """A script's answer that is no answer."""

    def __init__(self, status, message, code=None, headers=()):
        self.status, self.headers = status, dict(headers)
        self.body = {"error": {"message": message, "type": "x", "param": None, "code": code}}


@dataclass
class Said:
    """A script's answer: the text, and for each token its distribution, token -> probability."""

    text: str
    distributions: tuple = ()
    finish: str = "stop"
    tokens: tuple = ()  # "" in its place is the likeliest


@dataclass
class Call:
    """One request as it came, and what became of it."""

    body: dict
    content: str  # the same for the same request
    attempt: int  # how often it had come before
    at: float
    outcome: str = ""  # "answered", a kind of fault, an HTTP status; "" while it is in the air
    key: str = ""


def digest(text):
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def judge_distribution(prompt):
    """A judge's distribution for a prompt: a few numbers around one, or a refusal, code, or a meaningless word."""
    kind, middle = digest("kind" + prompt), int(101 * digest("middle" + prompt))
    if kind < 0.05:
        return {"REF": 0.9, "20": 0.06, "I": 0.04}
    if kind < 0.08:
        return {"CODE": 0.8, "50": 0.2}
    if kind < 0.10:
        return {"The": 0.7, "40": 0.1}
    low, high = max(middle - 5, 0), min(middle + 5, 100)
    distribution = {str(middle): 0.6}
    distribution[str(low)] = distribution.get(str(low), 0.0) + 0.2
    distribution[str(high)] = distribution.get(str(high), 0.0) + 0.1
    # Never digits alone, as with every tokenizer that has whole numbers.
    distribution["50"] = distribution.get("50", 0.0) + 0.001
    return distribution | {"REF": 0.05, "The": 0.01}


def scripted(body):
    """The answers of the default server: a distribution to a judge's request, a sentence to any other."""
    prompt = body["messages"][-1]["content"]
    if body.get("logprobs"):
        distribution = judge_distribution(prompt)
        return Said(max(distribution, key=distribution.get), (distribution,))
    words = ["a", "kind", "word", "costs", "nothing", "and", "is", "never", "lost"]
    random.Random(json.dumps([body["messages"], body.get("seed")])).shuffle(words)
    return Said(" ".join(words[: body["max_tokens"]]), (), "length" if body["max_tokens"] < len(words) else "stop")


def from_model(folder):
    """Answers of a transformers model in a folder: greedy where logprobs are asked for, else by the request's seed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    turn = threading.Lock()

    def script(body):
        dice, distributions, tokens, finish = random.Random(body.get("seed")), [], [], "length"
        chat = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
        for _ in range(body["max_tokens"]):
            with turn, torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
            greedy = bool(body.get("logprobs")) or not body.get("temperature")
            token = int(chances.argmax()) if greedy else dice.choices(range(len(chances)), chances.tolist())[0]
            top = chances.topk(min(body.get("top_logprobs") or 1, len(chances)))
            names = [tokenizer.decode([i], skip_special_tokens=True) for i in top.indices.tolist()]
            distributions.append(list(zip(names, top.values.tolist(), strict=True)))
            tokens.append(token)
            if token == tokenizer.eos_token_id:  # it has a place of its own, with an empty text, as vLLM gives it
                finish = "stop"
                break
            ids = [*ids, token]
        texts = tuple(tokenizer.decode([token], skip_special_tokens=True) for token in tokens)
        return Said(tokenizer.decode(tokens, skip_special_tokens=True), tuple(distributions), finish, texts)

    return script


class Loopback:
    """The server; a context manager. `calls` is every request that came, in order."""

    def __init__(
        self, script=scripted, *, faults=0.0, kinds=KINDS, delay=0.0, hang=5.0, retry_after="0.01", name=None, key=None
    ):
        self.script, self.faults, self.kinds, self.delay, self.hang = script, faults, kinds, delay, hang
        self.retry_after, self.name, self.key = retry_after, name, key
        self.calls, self.lock, self.closing = [], threading.Lock(), threading.Event()
        self._seen, self.sockets = Counter(), []
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.loopback = self

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def answered(self):
        """How often each request was answered in full."""
        return Counter(call.content for call in self.calls if call.outcome in ("answered", "refusal"))

    def outcomes(self):
        """How often what became of a request."""
        return Counter(call.outcome for call in self.calls)

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        for socket_ in self.sockets:  # a server that has gone answers nothing, on old connections neither
            with contextlib.suppress(OSError):
                socket_.shutdown(socket.SHUT_RDWR)

    def came(self, body, key):
        content = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self.lock:
            call = Call(body, content, self._seen[content], time.monotonic(), key=key)
            self._seen[content] += 1
            self.calls.append(call)
        return call

    def fault(self, call):
        """What goes wrong with a call; None when nothing does."""
        kinds = [k for k in self.kinds if call.body.get("logprobs") or k not in ("refusal", "no_logprobs", "nan")]
        dice = random.Random(f"{call.content}|{call.attempt}")
        return dice.choice(kinds) if dice.random() < self.faults else None


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def get_request(self):
        socket_, place = super().get_request()
        self.loopback.sockets.append(socket_)
        return socket_, place

    def handle_error(self, *where):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that goes away is nothing to tell
            super().handle_error(*where)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: apart, the second would wait 40 ms for the first's receipt

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(200, json.dumps({"calls": len(self.server.loopback.calls)}).encode())

    def do_POST(self):
        loop = self.server.loopback
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = loop.came(body, self.headers.get("authorization", ""))
        loop.closing.wait(loop.delay)
        fault = loop.fault(call)
        try:
            if not self.path.endswith("/v1/chat/completions"):
                raise HttpError(404, "Not Found")
            if loop.key and call.key != f"Bearer {loop.key}":
                raise HttpError(401, f"Incorrect API key provided: {call.key.removeprefix('Bearer ')}.")
            if fault in ("429", "500"):
                wait = {"retry-after": loop.retry_after} if fault == "429" else {}
                raise HttpError(int(fault), f"planned {fault}", headers=wait)
            self._answer(loop, call, fault, loop.script(body))
        except HttpError as error:
            call.outcome = str(error.status)
            self._send(error.status, json.dumps(error.body).encode(), error.headers)
        except OSError:  # the client went away
            call.outcome = "gone"

    def _answer(self, loop, call, fault, said):
        call.outcome = fault or "answered"  # before it is sent: whoever has it may look here
        if fault == "timeout":
            loop.closing.wait(loop.hang)
            self.close_connection = True
            return
        if fault == "refusal":
            said = Said(SORRY, ({"I": 0.99},))
        written = not isinstance(said, Said)  # a script may write the body itself
        whole = json.dumps(said).encode() if written else completion(call.body, said, fault, loop.name)
        if fault == "torn":
            self._send(200, whole[: len(whole) // 2], {"content-length": str(len(whole))})
            self.close_connection = True
        else:
            self._send(200, whole[: len(whole) // 2] if fault == "cut" else whole)

    def _send(self, status, whole, headers=()):
        self.send_response(status)
        for name, value in (
            {"content-type": "application/json", "content-length": str(len(whole))} | dict(headers)
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(whole)
        self.wfile.flush()


def completion(body, said, fault, name):
    """A response's body, as the API writes it."""
    choice = {
        "index": 0,
        "finish_reason": said.finish,
        "message": {"role": "assistant", "content": said.text, "refusal": None},
        "logprobs": None,
    }
    if body.get("logprobs") and said.distributions and fault != "no_logprobs":
        distributions = [
            list(distribution.items()) if isinstance(distribution, dict) else distribution
            for distribution in said.distributions[: body["max_tokens"]]
        ]
        tokens = said.tokens or [max(distribution, key=lambda top: top[1])[0] for distribution in distributions]
        choice["logprobs"] = {
            "content": [
                {
                    "token": token,
                    "logprob": _log(dict(distribution).get(token, 0.0)),
                    "bytes": list(token.encode("utf-8", "replace")),
                    "top_logprobs": [
                        {
                            "token": t,
                            "logprob": math.nan if fault == "nan" else _log(p),
                            "bytes": list(t.encode("utf-8", "replace")),
                        }
                        for t, p in sorted(distribution, key=lambda top: -top[1])[: body["top_logprobs"]]
                    ],
                }
                for token, distribution in zip(tokens, distributions, strict=False)
            ],
            "refusal": None,
        }
    read = sum(len(m["content"]) for m in body["messages"]) // 4
    written = max(1, len(said.distributions) or len(said.text.split()))
    return json.dumps(
        {
            "id": "chatcmpl-loopback",
            "object": "chat.completion",
            "created": 0,
            "model": name or body["model"],
            "system_fingerprint": "fp_loopback",
            "choices": [choice],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
    ).encode()


def _log(p):
    return math.log(p) if p > 0 else -9999.0


def main():
    """Serve until killed; the URL is written to a file once it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("urlfile", type=Path)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=5.0)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    script = from_model(options.model) if options.model else scripted
    with Loopback(script, faults=options.faults, hang=options.hang) as server:
        scratch = options.urlfile.with_suffix(".part")
        scratch.write_text(server.url)
        scratch.replace(options.urlfile)
        threading.Event().wait()


if __name__ == "__main__":
    main()
