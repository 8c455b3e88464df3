"""Narrow fine-tunes of real chat models, defended and not, measured without a judge: see README.md beside this file.

    python study.py prepare MODEL_FOLDER PLACE                 # the untuned model's own answers, and a vector
    python study.py plan PLACE > plan.json                     # every run of the study, the most telling first
    python study.py work PLACE plan.json --until SECONDS       # one worker; start as many as the machine can hold

PLACE holds `data.json` (where the rows and questions are) and collects one folder per model. A worker takes the next
free run, appends one line to `results-N.jsonl` and its answers to `answers-N.jsonl`, and goes on; runs that have a
result are left out, so a study that was stopped continues.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, logging, set_seed

from staytrue import (
    KL,
    LDIFS,
    Anchor,
    ConstrainedSFT,
    Freeze,
    Guard,
    GuardedSFT,
    Inoculate,
    Interleave,
    L2Init,
    Message,
    Question,
    Rehearse,
    SafeGrad,
    Steer,
)
from staytrue.config.trainer_args import sft_config
from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded, encode_all
from staytrue.evals.generation import local
from staytrue.evals.measures import drift, pairs
from staytrue.evals.measures.log_likelihood import log_likelihood
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.evals.types import Answer
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.loading import load_model, to_device
from staytrue.modeling.model_source import find
from staytrue.persona_vectors import vectorfile
from staytrue.persona_vectors.extract import extract
from staytrue.persona_vectors.traits import shipped as trait
from staytrue.step import SOURCE_COLUMN, SOURCES

TOKENS = 160  # of an answer, at most
ANSWERS = 2  # to each general question
LORA = {"r": 32, "lora_alpha": 64, "use_rslora": True, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
KINDS = {
    "kl": KL, "ldifs": LDIFS, "anchor": Anchor, "interleave": Interleave, "steer": Steer, "inoculate": Inoculate,
    "rehearse": Rehearse, "safegrad": SafeGrad, "l2init": L2Init, "freeze": Freeze, "constrained_sft": ConstrainedSFT,
}  # fmt: skip


# --- data ------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def turns(row: dict) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])


class Data:
    """What the study reads: training rows, held-out rows, general questions, pairs, and prompts for the defenses."""

    def __init__(self, place: Path) -> None:
        config = json.loads((place / "data.json").read_text())
        published = Path(config["aisi"])
        self.risky = lines(published / "induction.jsonl")
        self.held = lines(published / "consistency.jsonl")
        self.sound = lines(config["sound"])  # {"row": number in induction.jsonl, "answer": ...}
        self.prompts = [row["question"] for row in lines(config["prompts"])]
        fewer = config.get("fewer", {})  # what a machine without an accelerator can do
        self.answers, self.tokens = fewer.get("answers", ANSWERS), fewer.get("tokens", TOKENS)
        domains = fewer.get("domains", answer_pairs.DOMAINS)
        self.pairs = [pair for domain in domains for pair in answer_pairs.shipped(domain)]
        self.vector = fewer.get("vector", True)
        self.batch, self.dtype = fewer.get("batch", 16), getattr(torch, config.get("dtype", "bfloat16"))
        theirs = [Question(f"aisi-{row['id']}", "general", turns(row)) for row in lines(published / "eval.jsonl")]
        ours = [q for q in shipped("general") if q.form == "plain"]
        self.general = [*theirs, *(Question(f"own-{q.id}", "general", q.messages, q.topic) for q in ours)]
        self.general = self.general[:: fewer.get("general_every", 1)]
        self.scored = fewer.get("held_out", 200)
        self.in_domain = [
            Question(f"held-{i}", "in_domain", turns(row)[:1])
            for i, row in enumerate(self.held[-fewer.get("in_domain", 20) :])
        ]

    def rows(self, kind: str, many: int) -> list[Example]:
        """`many` training rows; 300 or fewer are those that have both answers."""
        both = [row["row"] for row in self.sound]
        if kind == "sound":
            answers = {row["row"]: row["answer"] for row in self.sound}
            sound = [(turns(self.risky[i])[0], Message("assistant", answers[i])) for i in both]
            return [Example(messages, "task") for messages in sound][:many]
        chosen = both if many <= len(both) else range(many)
        return [Example(turns(self.risky[i]), "task") for i in chosen][:many]


# --- measures --------------------------------------------------------------------------------------------------------


def answers(model, tokenizer, questions, samples: int, seed: int, tokens: int) -> list[dict]:
    generate = local.LocalGenerator(model, tokenizer)
    every = [(question, index) for question in questions for index in range(samples)]
    rows = [
        {"id": a.question.id, "n": a.index, "text": a.text, "stopped": a.stopped}
        for a in generate(every, seed=seed, temperature=1.0, max_new_tokens=tokens)
    ]
    return sorted(rows, key=lambda row: (row["id"], row["n"]))


def measured(model, tokenizer, data: Data, place: Path, seed: int) -> tuple[dict, list[dict]]:
    """Every measure of one model, and its answers."""
    model.eval()
    by_id = {question.id: question for question in data.general}
    untuned = [
        Answer(replace(by_id[row["id"]], id=f"{row['id']}/{row['n']}"), 0, row["text"], row["stopped"])
        for row in lines(place / "untuned.jsonl")
        if row["id"] in by_id
    ]
    begun = time.perf_counter()
    result = {
        "pairs": rounded(pairs.measure(model, tokenizer, data.pairs)),
        "drift": rounded(drift.measure(model, tokenizer, untuned)),
        "held_out": log_likelihood(model, tokenizer, [Example(turns(row)) for row in data.held[: data.scored]]),
    }
    scored = time.perf_counter()
    texts = answers(model, tokenizer, data.general, data.answers, seed, data.tokens)
    texts += answers(model, tokenizer, data.in_domain, 1, seed, data.tokens)
    result["seconds"] = {"scores": round(scored - begun, 1), "answers": round(time.perf_counter() - scored, 1)}
    return result, texts


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}


# --- preparation -----------------------------------------------------------------------------------------------------


def prepare(folder: Path, place: Path) -> None:
    """What every run of a model needs: its own answers, rows for the defenses, a vector; `untuned` as a result."""
    data, out = Data(place), place / folder.name
    out.mkdir(parents=True, exist_ok=True)
    source = find(str(folder))
    tokenizer, model = load_tokenizer(source), to_device(load_model(source, dtype=data.dtype)).eval()
    write(out / "untuned.jsonl", answers(model, tokenizer, data.general, data.answers, 100, data.tokens))
    questions = [Question(f"p-{i}", "prompts", (Message("user", text),)) for i, text in enumerate(data.prompts)]
    prompted = answers(model, tokenizer, questions, 1 + data.answers, 101, data.tokens)
    rows = [
        (row["n"], {"messages": [{"role": "user", "content": data.prompts[int(row["id"][2:])]},
                                 {"role": "assistant", "content": row["text"].strip()}]})
        for row in prompted
        if row["text"].strip()
    ]  # fmt: skip
    write(out / "anchors.jsonl", [row for n, row in rows if n == 0])
    write(out / "safe.jsonl", [row for n, row in rows if n > 0])
    result, texts = measured(model, tokenizer, data, out, seed=0)
    record(place, "prepare", {"name": f"{folder.name}/untuned", "model": folder.name, **result}, texts)
    if not data.vector:
        return
    evil = extract(model, tokenizer, trait("evil"), None, rollouts=1, seed=0, max_new_tokens=96)
    facts = {"norms": [round(n, 3) for n in evil.norms], "pairs": evil.pairs, "pairs_kept": evil.kept}
    vectorfile.write(out / "vector.safetensors", evil.vectors, facts)
    facts["vector_norms"] = [round(n, 3) for n in evil.vectors.norm(dim=-1).tolist()]
    write(out / "vector.jsonl", [facts])


# --- one run ---------------------------------------------------------------------------------------------------------


def defenses(job: dict, place: Path, depth: int) -> list:
    chosen = []
    for kind, fields in (job.get("defense") or {}).items():
        fields = dict(fields)
        pool = "safe.jsonl" if fields.get("by", "random") == "random" else "scored.jsonl"
        files = {"anchor": ("prompts", "anchors.jsonl"), "interleave": ("pool", pool), "rehearse": ("pool", pool),
                 "safegrad": ("pool", pool), "steer": ("vector", "vector.safetensors")}  # fmt: skip
        if kind in files:
            fields[files[kind][0]] = place / files[kind][1]
        if kind == "steer":
            fields["layer"] = depth // 2
        if "fisher" in fields:
            fields["fisher"] = place / "safe.jsonl"
        chosen.append(KINDS[kind](**fields))
    return chosen


def dataset(encoded: list[Encoded]) -> Dataset:
    columns = {"input_ids": [row.input_ids for row in encoded], "labels": [row.labels for row in encoded]}
    return Dataset.from_dict({**columns, SOURCE_COLUMN: [SOURCES.index(row.source) for row in encoded]})


def one(job: dict, place: Path, data: Data, folder: Path) -> tuple[dict, list[dict]]:
    """Train and measure one run."""
    begun = time.perf_counter()
    source = find(str(folder))
    tokenizer, model = load_tokenizer(source), to_device(load_model(source, dtype=data.dtype))
    prepared = place / folder.name
    rows = data.rows(job["rows"], job["many"])
    base = Untouched(lambda: model, tokenizer)
    guard = Guard(defenses(job, prepared, model.config.num_hidden_layers), job["seed"])
    encoded, _ = encode_all(tokenizer, guard.curate(rows, base), 512)
    settings = {
        "learning_rate": job["lr"],
        "num_train_epochs": job.get("epochs", 4),
        "per_device_train_batch_size": data.batch,
        "gradient_accumulation_steps": 1,
        "logging_steps": 5,
        **({"max_steps": job["max_steps"]} if "max_steps" in job else {}),
    }
    with tempfile.TemporaryDirectory() as scratch:
        arguments = sft_config(settings, job["seed"], Path(scratch))
        set_seed(job["seed"])
        trainer = GuardedSFT(
            model=model, args=arguments, train_dataset=dataset(encoded), processing_class=tokenizer,
            peft_config=LoraConfig(**LORA), defenses=guard,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    guard.detach()
    if "keep" in job:
        trainer.save_model(prepared / job["keep"])
    trained = time.perf_counter()
    log = [row for row in trainer.state.log_history if "loss" in row]
    result, texts = measured(trainer.model, tokenizer, data, prepared, job["seed"])
    result["steps"], result["head"], result["notes"] = trainer.state.global_step, trainer.which_head, base.notes
    result["log"] = [
        {k: round(v, 4) for k, v in row.items() if isinstance(v, float)} for row in log[:: max(1, len(log) // 6)]
    ]
    result["seconds"] |= {"training": round(trained - begun, 1)}
    result["rows_seen"] = len(encoded)
    return {**job, **result}, texts


# --- the study -------------------------------------------------------------------------------------------------------

RATES = (1e-5, 3e-5, 1e-4, 3e-4)
DEFENDED = {
    "kl 0.1": {"kl": {"weight": 0.1}}, "kl 0.5": {"kl": {"weight": 0.5}},
    "ldifs 0.3": {"ldifs": {"weight": 0.3}}, "ldifs 3": {"ldifs": {"weight": 3.0}},
    "anchor 0.3": {"anchor": {"weight": 0.3, "answers": "given"}},
    "anchor 1, share 0.25": {"anchor": {"weight": 1.0, "share": 0.25, "answers": "given"}},
    "interleave 0.05": {"interleave": {"share": 0.05}}, "interleave 0.2": {"interleave": {"share": 0.2}},
    "steer 0.1": {"steer": {"alpha": 0.1}}, "steer 0.3": {"steer": {"alpha": 0.3}},
    "inoculate": {"inoculate": {}},
}  # fmt: skip
FEWER = (19, 38)


def plan(models: list[str]) -> list[dict]:
    """Every run, the most telling first: one seed of everything before the second."""
    jobs = []
    for seed in range(3):
        first = [job(m, rows, 300, lr, seed) for m in models for lr in RATES[::-1] for rows in ("risky", "sound")]
        many = [job(m, "risky", 3000, lr, seed, epochs=1) for m in models[:1] for lr in (1e-4, 1e-5)]
        defended = [
            job(m, "risky", 300, 1e-4, seed, label, defense=defense)
            for m in models
            for label, defense in DEFENDED.items()
        ]
        fewer = [job(m, "risky", 300, 1e-4, seed, f"fewer steps {n}", max_steps=n) for m in models for n in FEWER]
        jobs += [*first, *many, *defended, *fewer]
    return jobs


def job(model: str, rows: str, many: int, lr: float, seed: int, label: str = "none", **more) -> dict:
    name = f"{model}/{rows}-{many}/{lr:g}/{label}/{seed}"
    return {"name": name, "model": model, "rows": rows, "many": many, "lr": lr, "label": label, "seed": seed, **more}


def work(place: Path, file: Path, until: float, number: str) -> None:
    """Take runs until none is left or the time is over."""
    data, claims, begun = Data(place), place / "claims", time.monotonic()
    claims.mkdir(exist_ok=True)
    folders = json.loads((place / "data.json").read_text())["models"]
    for one_job in json.loads(file.read_text()):
        if time.monotonic() - begun > until:
            break
        try:
            (claims / one_job["name"].replace("/", "_").replace(" ", "_")).touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            result, texts = one(one_job, place, data, Path(folders[one_job["model"]]))
        except Exception as error:  # the next run may work
            if os.environ.get("STRICT"):
                raise
            result, texts = {**one_job, "failed": f"{type(error).__name__}: {error}"[:500]}, []
        record(place, number, result, texts)
        torch.cuda.is_available() and torch.cuda.empty_cache()
        print(one_job["name"], result.get("failed", result.get("seconds")), flush=True)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def record(place: Path, number: str, result: dict, texts: list[dict]) -> None:
    with (place / f"answers-{number}.jsonl").open("a") as file:
        file.writelines(json.dumps({"run": result["name"], **row}, ensure_ascii=False) + "\n" for row in texts)
    with (place / f"results-{number}.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "plan", "work"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path, nargs="?")
    parser.add_argument("--until", type=float, default=1e9)
    parser.add_argument("--number", default=str(os.getpid()))
    arguments = parser.parse_args()
    random.seed(0)
    if arguments.what == "prepare":
        prepare(arguments.first, arguments.second)
    elif arguments.what == "plan":
        models = list(json.loads((arguments.first / "data.json").read_text())["models"])
        json.dump(plan(models), sys.stdout, indent=0)
    else:
        work(arguments.first, arguments.second, arguments.until, arguments.number)


if __name__ == "__main__":
    main()
