"""Habits of providers, one a class, on a real HTTP server on 127.0.0.1: what servers do beside the documented API.

with Habit.NAME() as server:
    server.url, server.calls
"""

import json

from loopback import HttpError, Loopback, Said, completion


class Habit(Loopback):
    """A server that answers as the API documents; subclasses change what they refuse or how they answer."""

    def __init__(self, **options):
        super().__init__(self.answer, **options)

    def answer(self, body):
        self.refuse(body)
        said = (
            Said("90", ({"90": 0.7, "80": 0.2, "95": 0.05},), "length")
            if body.get("logprobs")
            else Said("A plain answer.")
        )
        limits = {"max_tokens": body.get("max_tokens") or body.get("max_completion_tokens")}
        whole = json.loads(completion(limits | body, said, None, None))
        return self.change(whole) or whole

    def refuse(self, body):
        """Raise an HttpError for a request that the provider refuses."""

    def change(self, whole):
        """Change a completion in place, or return another body."""


def refusal(status, body, headers=()):
    """An error with a body of any form."""
    error = HttpError(status, "", headers=headers)
    error.body = body
    return error


def openai_error(message, param=None, code=None, status=400):
    return refusal(
        status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    )


class NewTokenLimit(Habit):
    """Reasoning models of OpenAI know `max_completion_tokens` only."""

    def refuse(self, body):
        if "max_tokens" in body:
            raise openai_error("This model needs 'max_completion_tokens' where others take 'max_tokens'.", "max_tokens")


class LeastTokens(Habit):
    """A lower bound for the length of an answer."""

    def refuse(self, body):
        if body["max_tokens"] < 16:
            raise openai_error(f"'max_tokens' is {body['max_tokens']}, below the minimum of 16.", "max_tokens")


class TopPBelowOne(Habit):
    """The error is a string, the status 422."""

    def refuse(self, body):
        if body.get("top_p") == 1:
            raise refusal(422, {"error": "`top_p` has to be above 0 and below 1", "error_type": "validation"})


class NoSeed(Habit):
    """FastAPI's list of details."""

    def refuse(self, body):
        if "seed" in body:
            detail = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "No such input", "input": body["seed"]}
            raise refusal(422, {"detail": [detail]})


def without_seed(body):
    """A server that refuses seeds with a body of its own."""

    class WithoutSeed(Habit):
        def refuse(self, request):
            if "seed" in request:
                raise refusal(400, body)

    return WithoutSeed


class OneTemperature(Habit):
    """Only the default temperature."""

    def refuse(self, body):
        if body.get("temperature", 1) != 1:
            raise openai_error(
                "This value is not supported: only the default of 1 is.", "temperature", "unsupported_value"
            )


class PositiveTemperature(Habit):
    def refuse(self, body):
        if body.get("temperature") == 0:
            raise refusal(422, {"error": "temperature must be strictly positive"})


class OneOfTwo(Habit):
    """Temperature or top_p, not both."""

    def refuse(self, body):
        if "temperature" in body and "top_p" in body:
            raise openai_error('"temperature" and "top_p" exclude each other for this model.')


class Strict(Habit):
    """One parameter after the other is refused."""

    def refuse(self, body):
        for name in ("max_tokens", "top_p", "seed"):
            if name in body:
                raise refusal(400, {"object": "error", "message": f"[{name}] is unknown here", "code": 40301})


class RefusesAll(Habit):
    """Whatever is left out, something is refused."""

    def refuse(self, body):
        raise openai_error(f"One of [{'], ['.join(sorted(body))}] is wrong.")


class ShortContext(Habit):
    """A prompt that is too long; the message names a parameter that is not at fault."""

    def refuse(self, body):
        raise openai_error("The context length is 4096 tokens, and the prompt and max_tokens need 5000.", "max_tokens")


def fewer_tops(most, message):
    """A server with at most so many likely tokens."""

    class FewerTops(Habit):
        def refuse(self, body):
            if body.get("top_logprobs", 0) > most:
                raise openai_error(message.format(most=most, asked=body["top_logprobs"]), "top_logprobs")

    return FewerTops


class NoLogprobs(Habit):
    def refuse(self, body):
        if "logprobs" in body or "top_logprobs" in body:
            raise openai_error("logprobs are not supported by this model", "logprobs")


class FilteredPrompt(Habit):
    """A filter that refuses prompts; `error` is the provider's."""

    error = openai_error("A filter took the prompt.", "prompt", "content_filter")

    def refuse(self, body):
        if "bomb" in json.dumps(body["messages"]):
            raise self.error


def filtered_prompt(status, body):
    return type("FilteredPrompt", (FilteredPrompt,), {"error": refusal(status, body)})


def changed(change):
    """A server whose completions are changed by a function."""
    return type("Changed", (Habit,), {"change": lambda self, whole: change(whole)})


def finished(reason, content=""):
    """A server whose answers end for a reason of its own."""

    def change(whole):
        whole["choices"][0] |= {"finish_reason": reason, "message": {"role": "assistant", "content": content}}

    return changed(change)


def body_of_200(body):
    """A server that answers 200 with a body of its own."""
    return changed(lambda whole: body)


def stopped(text, reason=None):
    """vLLM with `include_stop_str_in_output`, or with special tokens in the text: an answer ends with what stopped it.

    `reason` is vLLM's `stop_reason`: a stop string, a token's number, or None at the model's own end token.
    """

    def change(whole):
        whole["choices"][0] |= {"message": {"role": "assistant", "content": text}, "stop_reason": reason}

    return changed(change)


def message(finish="stop", **fields):
    """A server whose message has these fields."""

    def change(whole):
        whole["choices"][0] |= {"finish_reason": finish, "message": {"role": "assistant", **fields}}

    return changed(change)


def usage(value):
    """A server that counts tokens in its own way; `...` leaves the count out."""
    return changed(lambda whole: whole.pop("usage") and None if value is ... else whole.update(usage=value))


def logprobs(change):
    """A server whose log-probabilities are changed by a function; other answers are as documented."""

    def changes(whole):
        choice = whole["choices"][0]
        if choice["logprobs"]:
            choice["logprobs"] = change(choice["logprobs"])

    return changed(changes)
