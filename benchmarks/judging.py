"""Judging at an endpoint with concurrent calls, against a loop of single calls.

The endpoint is a local server that answers after 20 ms, like a fast remote one.
"""

import json
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.sidebyside import measure, ratio
from staytrue.data.examples import Message
from staytrue.evals.judges.endpoint import EndpointJudge
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.types import Answer, Question, judged

DELAY, ANSWERS = 0.02, {"tiny": 20}
_SAID = {"token": "80", "logprob": -0.1, "top_logprobs": [{"token": "80", "logprob": -0.1}]}


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(DELAY)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "80"}}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        sent = json.dumps(body | {"choices": [choice | {"logprobs": {"content": [_SAID]}}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args):
        pass


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = Address("judge", f"http://127.0.0.1:{server.server_port}/v1")
    question = Question("q", "general", (Message("user", "Why?"),))
    answers = [Answer(question, i, f"answer {i}", True) for i in range(ANSWERS.get(shape_name, 100))]

    def judge(threads: int):
        def judging() -> None:
            with tempfile.TemporaryDirectory() as folder:  # nothing was paid for before
                cache = ResponseCache(Path(folder) / "cache")
                endpoint_judge = EndpointJudge(Endpoint(address), cache, concurrency=threads)
                assert len(list(judged(endpoint_judge, answers))) == len(answers)
                cache.close()

        return judging

    measured = measure({"serial": judge(1), "ours": judge(16)}, rounds)
    server.shutdown()
    return {"judging/serial:ours": ratio(measured, "serial", "ours", 16.0)}
