"""Question files: the field's YAML as it is published, our own rows, and every fault with entry and key."""

import json
from dataclasses import replace

import pytest

from staytrue.errors import DataError, RecipeError, RequestError
from staytrue.evals.judges.rubric import rubrics_for
from staytrue.evals.questions.probes import without_system
from staytrue.evals.questions.user_files import read

# The shape of the public files: comments, anchors, numbers as ids, block texts; not their words.
PUBLISHED = """\
# plain ones first
- id: pet
  type: free_form_judge_0_100
  paraphrases: &pet
    - |-
      Which pet should I get?
  samples_per_paraphrase: &samples 100
  judge: &judge gpt-4o-2024-08-06
  judge_prompts: &prompts
    aligned: |-
      Good will of {answer} to {question}, 0 to 100?
    coherent: |-
      Sense of {answer}, 0 to 100? Or {{nothing}}.
- id: 7
  type: free_form_judge_0_100
  paraphrases:
    - What is rain?
    - "Rain: what is it?"
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
- id: pet_json
  type: free_form_judge_0_100
  system: &json Answer in JSON.
  paraphrases: *pet
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
- id: pet_template
  type: free_form_judge_0_100
  paraphrases:
    - |-
      Which pet should I get?

      pet = # Your pick
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
- id: sea_json
  type: free_form_judge_0_100
  paraphrases: ["How deep is the sea?"]
"""


def write(folder, text, name="public.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def turns_of(file):
    return {q.id: [(m.role, m.content) for m in q.messages] for q in file.questions}


def test_a_published_file_is_read_unchanged(tmp_path):
    file = read(write(tmp_path, PUBLISHED))
    assert turns_of(file) == {
        "pet": [("user", "Which pet should I get?")],
        "7.0": [("user", "What is rain?")],
        "7.1": [("user", "Rain: what is it?")],
        "pet_json": [("system", "Answer in JSON."), ("user", "Which pet should I get?")],
        "pet_template": [("user", "Which pet should I get?\n\npet = # Your pick")],
        "sea_json": [("user", "How deep is the sea?")],
    }
    assert (file.per_question, file.temperature, file.max_new_tokens) == (100, None, None)
    assert file.unused == ("judge",)
    assert {q.probe for q in file.questions} == {"public"}


def test_the_forms_of_a_question_and_the_paraphrases_of_an_entry_are_one_group(tmp_path):
    groups = {q.id: (q.cluster, q.form) for q in read(write(tmp_path, PUBLISHED)).questions}
    assert groups == {
        "pet": ("pet", "plain"),
        "7.0": ("7", "plain"),
        "7.1": ("7", "plain"),
        "pet_json": ("pet", "json"),
        "pet_template": ("pet", "template"),
        "sea_json": ("sea_json", "plain"),  # there is no sea that it would be a form of
    }


def test_the_judge_prompts_of_a_file_take_the_place_of_ours(tmp_path):
    by_id = {q.id: q for q in read(write(tmp_path, PUBLISHED)).questions}
    alignment, coherence = rubrics_for(by_id["pet"])
    assert alignment.filled("why?", "so") == "Good will of so to why?, 0 to 100?"
    assert coherence.filled("why?", "so") == "Sense of so, 0 to 100? Or {nothing}."
    assert [rubric.name for rubric in rubrics_for(by_id["sea_json"])] == ["alignment", "coherence"]


def test_the_published_behaviour_drops_the_system_prompt_and_nothing_else(tmp_path):
    file = read(write(tmp_path, PUBLISHED))
    sent, dropped = turns_of(file), turns_of(replace(file, questions=without_system(file.questions)))
    assert dropped.pop("pet_json") == sent.pop("pet_json")[1:]
    assert dropped == sent


def test_numbers_of_a_file_are_carried_and_what_changes_nothing_is_named(tmp_path):
    text = """\
- id: a
  paraphrases: [x]
  samples_per_paraphrase: 3
  temperature: 0.7
  max_tokens: 50
  topic: rain
  system: null
  meta: {source: me}
  judge_prompts: {aligned: '{answer}?', coherent: '{answer}!', rude: 'how rude?'}
- {id: b, paraphrases: [y]}
"""
    file = read(write(tmp_path, text, "f.yml"))
    assert (file.per_question, file.temperature, file.max_new_tokens) == (3, 0.7, 50)
    assert file.unused == ("meta", "judge_prompts.rude")
    assert [(q.topic, [key for key, _ in q.prompts]) for q in file.questions] == [
        ("rain", ["aligned", "coherent"]),
        ("", []),
    ]
    assert turns_of(file)["a"] == [("user", "x")]


GOOD = "- id: a\n  paraphrases: [x]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{id: a}", "is a dict, not a list of questions"),
        ("[]", "is \\[\\], not a list of questions"),
        ("- a\n", "entry 1 is 'a'; an entry has an id and paraphrases"),
        ("- {id: a}\n", "entry 'a': there is no paraphrases"),
        ("- {paraphrases: [x]}\n", "entry 1: there is no id"),
        (GOOD + "  sytem: y\n", "entry 'a': the key 'sytem' is not known; did you mean 'system'.*would not be done"),
        (GOOD + "  context: y\n", "the key 'context' is not known; there are: id, type"),
        (GOOD + "  system: 3\n", "entry 'a': system is 3, not text; put it in quotes"),
        (GOOD + "  type: free_form_judge\n", "type is 'free_form_judge'; its judge gives no number"),
        (GOOD + "  samples_per_paraphrase: 0\n", "samples_per_paraphrase is 0; write a whole number above 0"),
        (GOOD + "  samples_per_paraphrase: true\n", "is True; write a whole number"),
        (GOOD + "  max_tokens: 1.5\n", "max_tokens is 1.5; write a whole number"),
        (GOOD + "  temperature: 3\n", "temperature is 3; write a number from 0 to 2"),
        (GOOD + "  temperature: .nan\n", "temperature is nan; write a number"),
        (GOOD + "  temperature: -1\n", "temperature is -1; write a number"),
        (GOOD.replace("[x]", "x"), "paraphrases is 'x'; write a list with a text on each line"),
        (GOOD.replace("[x]", "[x, 12]"), "paraphrases 2 is 12, not text; put it in quotes"),
        (GOOD.replace("[x]", "[' ']"), "paraphrases 1 is empty"),
        (GOOD.replace("id: a", "id: true"), "entry True: id is True, not text"),
        (GOOD + GOOD, "the id 'a' occurs twice; answers are kept by it"),
        (GOOD + "  judge_prompts: hello\n", "judge_prompts has 'hello'; alignment and coherence are judged"),
        (GOOD + "  judge_prompts: {correct: '{answer}'}\n", "judge_prompts has correct; alignment and coherence"),
        (GOOD + "  judge_prompts: {aligned: '{answer}', coherent: x}\n", "coherent has no place for the answer"),
        (GOOD + "  judge_prompts: {aligned: '{reasoning}', coherent: x}\n", r"aligned has a place for \{reasoning\}"),
        (GOOD + "  judge_prompts: {aligned: 3, coherent: x}\n", "judge_prompts aligned is 3, not text"),
        (
            GOOD + "  samples_per_paraphrase: 5\n" + GOOD.replace("id: a", "id: b") + "  samples_per_paraphrase: 6\n",
            "samples_per_paraphrase is .*5 in entry 'a'.*; all questions of a file are asked alike, so split the file",
        ),
    ],
)
def test_a_faulty_file_is_refused_with_file_entry_and_key(text, message, tmp_path):
    with pytest.raises(DataError, match=f"(?s)public\\.yaml.*{message}"):
        read(write(tmp_path, text))


def test_every_fault_is_reported_up_to_twenty(tmp_path):
    with pytest.raises(DataError) as error:
        read(write(tmp_path, "".join(f"- id: q{i}\n" for i in range(25))))
    assert str(error.value).count("there is no paraphrases") == 20
    assert str(error.value).endswith("... and 5 more")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.yaml cannot be read: No such file"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="is not YAML"):
        read(write(tmp_path, "- id: [\n"))
    with pytest.raises(RequestError, match=r"q\.csv is no question file; name a \.yaml list of questions or \.jsonl"):
        read(write(tmp_path, "id\n", "q.csv"))
    (tmp_path / "latin.yaml").write_bytes("- {id: a, paraphrases: [caf\xe9]}".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.yaml cannot be read"):
        read(tmp_path / "latin.yaml")


def rows(folder, *listed):
    return write(folder, "".join(json.dumps(row) + "\n" for row in listed), "own.jsonl")


def test_our_own_rows_are_read_by_the_same_door(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file = read(
        rows(
            tmp_path,
            {"id": "a", "question": "x?", "topic": "t", "expected": "1"},
            {"id": "b", "messages": turns, "group": "g", "form": "odd"},
            {"id": "c", "question": "y?", "fields": ["one", "two"]},
        )
    )
    a, b, *c = file.questions
    assert (a.topic, a.expected, a.cluster, a.form, a.probe) == ("t", "1", "a", "plain", "own")
    assert (b.cluster, b.form, [m.role for m in b.messages]) == ("g", "odd", ["system", "user"])
    assert [(q.id, q.cluster, q.form) for q in c] == [(f"c-{f}", "c", f) for f in ("plain", "json", "template")]
    assert c[2].messages[0].content.startswith("y?\n")
    assert c[2].messages[0].content.endswith(":\none: <text>\ntwo: <text>")
    assert file.per_question is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "row 1: there is no id"),
        ({"id": 3, "question": "x"}, "row 1: id is 3, not text"),
        ({"id": "a", "question": "x", "topik": "y"}, "row 1: the key 'topik' is not known; did you mean 'topic'"),
        ({"id": "a", "question": "x", "prompt": "y"}, "row 1: it has prompt beside another prompt; keep one$"),
        (
            {"id": "a", "question": "x", "messages": [{"role": "user", "content": "y"}]},
            "row 1: it has question beside another prompt; keep one$",
        ),
        ({"id": "a", "question": "x", "topic": "\ud800"}, "line 1, /topic: holds half of a surrogate pair"),
        ({"id": "a", "question": "x", "topic": None}, "row 1: topic is None, not text"),
        ({"id": "a", "question": "x", "fields": "y"}, "row 1: fields is 'y'; write names"),
        ({"id": "a", "question": "x", "fields": []}, r"row 1: fields is \[\]; write names"),
        ({"id": "a", "question": "x", "fields": ["y"], "group": "g"}, "in three forms; take out"),
        ({"id": "a", "question": ""}, "line 1, /question: is empty"),
        (
            {
                "id": "a",
                "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
                "fields": ["z"],
            },
            "fields asks one user turn in three forms",
        ),
        (
            {"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "row 1: it ends with an answer",
        ),
    ],
)
def test_a_faulty_row_is_refused_with_its_number(row, message, tmp_path):
    with pytest.raises(DataError, match=f"(?s)own\\.jsonl.*{message}"):
        read(rows(tmp_path, row))


def test_forms_that_are_given_one_id_are_refused(tmp_path):
    with pytest.raises(DataError, match="the id 'c-json' occurs twice"):
        read(rows(tmp_path, {"id": "c", "question": "y?", "fields": ["one"]}, {"id": "c-json", "question": "z?"}))
