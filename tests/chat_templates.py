"""Chat templates of many families, tokenizers for them, and what is scored of two turns under each."""

import json
import re
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import IGNORED

TWO_TURNS = Example(
    (Message("user", "2+2?"), Message("assistant", "4"), Message("user", "sure?"), Message("assistant", "yes, 4"))
)

# What is scored in that conversation: the answers and the token that ends each; never a header, never what follows.
SCORED = {
    "qwen2": ["4<|im_end|>", "yes, 4<|im_end|>"],
    # The last answer's empty block for reasoning is the model's own to write: the generation prompt stops before it.
    "qwen3": ["4<|im_end|>", "<think>\n\n</think>\n\nyes, 4<|im_end|>"],
    "llama3": ["4<|eot_id|>", "yes, 4<|eot_id|>"],
    "mistral": [" 4</s>", " yes, 4</s>"],
    "gemma3": ["4<end_of_turn>", "yes, 4<end_of_turn>"],
    "phi3": ["4<|end|>", "yes, 4<|end|>"],
}


def scored(tokenizer, encoded):
    """The scored stretches, as text."""
    runs, open_run = [], []
    for token, label in zip([*encoded.input_ids, 0], [*encoded.labels, IGNORED], strict=True):
        if label != IGNORED:
            assert label == token
            open_run.append(token)
        elif open_run:
            runs.append(tokenizer.decode(open_run))
            open_run = []
    return runs


# Further families of templates: the template, its special tokens, and what is scored of TWO_TURNS; the token that ends
# generation is the last one of the last answer.
LLAMA2 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<s>[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)

CODER = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n' }}"
    "{%- else %}{{ '### Response:\\n' + m.content + '\\n<|EOT|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '### Response:' }}{%- endif %}"
)

GLM4 = (
    "{{ '[gMASK]<sop>' }}{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}"
)

# Reasoning stands before an answer after the last question; earlier answers have theirs taken out.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.reasoning_content %}{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' and loop.index0 > ns.last and "
    "(loop.last or thought) %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{ content }}{%- for call in m.tool_calls or () %}{{ '\\n<tool_call>\\n' + call.function | tojson + "
    "'\\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)

R1 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{%- else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{%- endif %}"
)

HARMONY = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{%- endif %}"
)

SPACED = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '\\n\\n<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)

FAMILIES = {
    "llama2": (LLAMA2, ["</s>", "<s>"], [" 4 </s>", " yes, 4 </s>"]),
    "coder": (CODER, ["<|EOT|>"], ["\n4\n<|EOT|>", "\nyes, 4\n<|EOT|>"]),
    "glm4": (
        GLM4,
        ["<|endoftext|>", "<sop>", "[gMASK]", "<|user|>", "<|assistant|>"],
        ["4<|user|>", "yes, 4<|user|>"],
    ),
    "qwen3": (QWEN3, ["<|im_end|>", "<|im_start|>"], ["4<|im_end|>", "<think>\n\n</think>\n\nyes, 4<|im_end|>"]),
    "r1": (R1, ["<|end|>", "<|User|>", "<|Assistant|>"], ["4<|end|>", "yes, 4<|end|>"]),
    "harmony": (
        HARMONY,
        ["<|return|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>"],
        ["<|channel|>final<|message|>4<|end|>", "<|channel|>final<|message|>yes, 4<|return|>"],
    ),
    "spaced": (SPACED, ["<|end|>", "<|user|>", "<|assistant|>", "\n\n"], ["4\n\n<|end|>", "yes, 4\n\n<|end|>"]),
}

TEXT = (
    "{%- for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'A: ' }}{%- endif %}"
)


def byte_tokenizer(template, special, eos=None, plain=()):
    """Every byte is a token, and so are the special ones and the plain added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<pad>", *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    inner.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token=eos or special[0],
        extra_special_tokens=[t for t in special if t != (eos or special[0])],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def family(kind):
    return byte_tokenizer(*FAMILIES[kind][:2])


def conversation(*answers, question="Why?"):
    return Example(tuple(m for a in answers for m in (Message("user", question), Message("assistant", a))))


THOUGHT = "<think>\nSeven times thirteen.\n</think>\n\nNo."

SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s{}']+\|>|<｜[^<>]+?｜>|<(?:start|end)_of_turn>")


def published(name, end="<|im_end|>"):
    """A tokenizer with one of TRL's templates."""
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.exists():
        pytest.skip("this trl does not ship the template")
    template = file.read_text(encoding="utf-8")
    special = sorted(set(SPECIAL_TOKEN.findall(template)) - {end})
    return byte_tokenizer(template, [end, *special], plain=("<think>", "</think>"))


def calling(*cities, content="", **more):
    calls = [
        {"type": "function", "function": {"name": "get_w", "arguments": json.dumps({"city": city})}} for city in cities
    ]
    return Message("assistant", content, more=json.dumps(more | {"tool_calls": calls}))


QUESTION = Message("user", "How is it?")

TOOLS = {"tools": [{"type": "function", "function": {"name": "get_w", "description": "Weather.", "parameters": {}}}]}

VICUNA = (
    "{%- for m in messages %}{{ ('USER: ' if m.role == 'user' else ' ASSISTANT: ') + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ ' ASSISTANT: ' }}{%- else %}{{ eos_token }}{%- endif %}"
)
