"""Folders from elsewhere: a sentence refuses them before transformers, PEFT, torch or safetensors reads anything."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from staytrue.errors import ModelError
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.weight_files import WeightFiles


class Bomb:
    """Unpickled, it creates the canary file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    tiny.save("qwen2", place / "model")
    tiny.lora(tiny.model("qwen2")).save_pretrained(str(place / "adapter"))
    return place


@pytest.fixture
def no_loader(monkeypatch):
    """Every loader fails the test."""
    import peft
    import safetensors
    import transformers

    def fail(*_, **__):
        pytest.fail("a loader ran")

    for owner, name in (
        (transformers.AutoConfig, "from_pretrained"),
        (transformers.AutoTokenizer, "from_pretrained"),
        (transformers.AutoModelForCausalLM, "from_pretrained"),
        (peft.PeftModel, "from_pretrained"),
        (peft.PeftConfig, "from_pretrained"),
        (torch, "load"),
        (safetensors, "safe_open"),
    ):
        monkeypatch.setattr(owner, name, fail)


def keys(file="config.json", **changes):
    """Change settings of a JSON file."""

    def edit(folder):
        path = folder / file
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(settings | changes))

    return edit


def content(file, value):
    def edit(folder):
        (folder / file).write_bytes(value if isinstance(value, bytes) else value.encode())

    return edit


def pickled(*files, without="*.safetensors"):
    """Pickles in the place of weights."""

    def edit(folder):
        for weights in folder.glob(without):
            weights.unlink()
        for file in files:
            (folder / file).write_bytes(pickle.dumps(Bomb(folder.parent / "canary")))

    return edit


def link(file, target, keep=None):
    """A file of the folder becomes a link."""

    def edit(folder):
        path = folder / file
        if keep:
            shutil.move(path, folder / keep)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return edit


def both(*edits):
    def edit(folder):
        for one in edits:
            one(folder)

    return edit


def pipe(file):
    def edit(folder):
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return edit


def header(change, file=None, values=None, length=None):
    """Rewrite the header of the weights."""

    def edit(folder):
        path = folder / (file or next(folder.glob("*.safetensors")).name)
        whole = path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        entries = json.loads(whole[8 : 8 + size])
        new = change(entries)
        new = new if isinstance(new, bytes) else json.dumps(new).encode()
        rest = whole[8 + size :] if values is None else values
        path.write_bytes((len(new) if length is None else length).to_bytes(8, "little") + new + rest)

    return edit


def first(**changes):
    """Change the entry of the first matrix."""

    def change(entries):
        name = next(name for name in entries if name != "__metadata__")
        return entries | {name: entries[name] | changes}

    return change


def overlapping(entries):
    """Every matrix that is as large as the first begins where the first does."""
    names = [name for name in entries if name != "__metadata__"]
    one = entries[names[0]]
    return {names[0]: one, "twin": one}


def repeated(entries):
    name = next(name for name in entries if name != "__metadata__")
    return (json.dumps(entries)[:-1] + f', "{name}": {json.dumps(entries[name])}}}').encode()


def gap(entries):
    names = sorted((n for n in entries if n != "__metadata__"), key=lambda n: entries[n]["data_offsets"])
    return {name: entries[name] for name in names[1:]}


def integers(folder):
    """The weights as whole numbers of the same size."""
    path = next(folder.glob("*.safetensors"))
    save_file({name: value.float().view(torch.int32) for name, value in load_file(path).items()}, path)


CODE = "never runs remote code"
MODELS = {
    "auto_map": (
        both(
            keys(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="mystery"),
            content("evil.py", "from pathlib import Path\nPath(__file__).parent.parent.joinpath('canary').touch()\n"),
        ),
        rf"config\.json has the key `auto_map` .*{CODE}",
    ),
    "auto_map of another repository": (keys(auto_map={"AutoConfig": "evil/repo--evil.Config"}), CODE),
    "auto_map without a kind": (keys(auto_map={"AutoConfig": "evil.Config"}, model_type=[]), CODE),
    "auto_map with a path": (keys(auto_map={"AutoConfig": "../evil.Config"}), CODE),
    "auto_map as a list": (keys(auto_map=["evil.Config", None]), CODE),
    "nested auto_map": (keys(text_config={"auto_map": {"AutoConfig": "evil.C"}}), r"`text_config\.auto_map`"),
    "auto_map in a list": (keys(parts=[{"auto_map": {"AutoModel": "evil.M"}}]), r"`parts\.0\.auto_map`"),
    "auto_map of the tokenizer": (
        keys("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        r"tokenizer_config\.json has the key `auto_map`",
    ),
    "auto_map that is null": (keys(auto_map=None), r"/config\.json has the key `auto_map` \(null\), .* Take the key"),
    "auto_map that is false": (
        keys("tokenizer_config.json", auto_map=False),
        r"tokenizer_config\.json has the key `auto_map` \(false\), which names nothing, .* Take the key out",
    ),
    "trust_remote_code": (keys(trust_remote_code=True), r"the key `trust_remote_code` \(True\)"),
    "trust_remote_code as text": (keys(trust_remote_code="true"), CODE),
    "nested trust_remote_code": (
        keys(keypoint_detector_config={"model": {"trust_remote_code": True}}),
        r"`keypoint_detector_config\.model\.trust_remote_code`",
    ),
    "trust_remote_code of the tokenizer": (keys("tokenizer_config.json", trust_remote_code=1), "tokenizer_config"),
    "trust_remote_code of generation": (keys("generation_config.json", trust_remote_code=True), "generation_config"),
    "custom_generate": (keys("generation_config.json", custom_generate="evil/repo"), "`custom_generate`"),
    "custom_pipelines": (keys(custom_pipelines={"x": {"impl": "evil.P"}}), "`custom_pipelines`"),
    "code_revision": (keys(code_revision="main"), "`code_revision`"),
    "kernel, internal": (keys(_attn_implementation_internal="evil/kernel"), "`_attn_implementation_internal`"),
    "kernel, internal, harmless value": (keys(_attn_implementation_internal="sdpa"), "kernel's code from the hub"),
    "kernel, nested": (keys(text_config={"_attn_implementation_internal": "evil/k"}), r"`text_config\._attn_impl"),
    "kernel of experts": (keys(_experts_implementation_internal="evil/k"), "`_experts_implementation_internal`"),
    "kernel by name": (keys(attn_implementation="evil/kernel:f"), r"`attn_implementation` \('evil/kernel:f'\)"),
    "kernel by underscored name": (keys(_attn_implementation="evil/kernel"), "`_attn_implementation`"),
    "kernels by part": (keys(attn_implementation={"": "sdpa", "text_config": "evil/k"}), "`attn_implementation`"),
    "weights elsewhere": (keys(transformers_weights="../../other.safetensors"), "`transformers_weights`"),
    "an adapter inside": (keys("adapter_config.json", base_model_name_or_path="/tmp/evil"), "holds an adapter"),
    "settings of a tokenizer without its vocabulary": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"/model has no tokenizer\.json\. Save the tokenizer beside the model",
    ),
    "no model_type": (content("config.json", "{}"), "names no model_type"),
    "configuration of another kind": (content("config.json", "[]"), r"config\.json is \[\], not an object"),
    "configuration with a key twice": (
        content("config.json", '{"model_type": "qwen2", "model_type": "evil"}'),
        "the key 'model_type' occurs twice",
    ),
    "configuration that is nested": (content("config.json", '{"a":' * 9000 + "1" + "}" * 9000), "nested too deeply"),
    "configuration that is no text": (content("config.json", b"\xff\xfe{\0}\0"), "is not JSON"),
    "configuration of 17 MB": (
        content("config.json", '{"a": "' + "a" * (17 << 20) + '"}'), "so it is no configuration"),
    "a pickle for weights": (pickled("pytorch_model.bin"), r"pytorch_model\.bin is a pickle"),
    "a .pt for weights": (pickled("model.pt"), r"model\.pt is a pickle"),
    "a .pth for weights": (pickled("consolidated.00.pth"), r"consolidated\.00\.pth is a pickle"),
    "a pickle called safetensors": (pickled("model.safetensors"), r"model\.safetensors (is no safetensors|is cut)"),
    "a pickle beside other weights": (
        both(link("model.safetensors", "x", keep="other.safetensors"), pickled("pytorch_model.bin", without="model.*")),
        r"neither model\.safetensors nor",
    ),
    "an index of pickles": (
        both(
            pickled("pytorch_model.bin", without="none"),
            keys("model.safetensors.index.json", weight_map={"a": "pytorch_model.bin"}),
        ),
        r"names \(first: 'pytorch_model\.bin'\)",
    ),
    "an index that leads out": (
        keys("model.safetensors.index.json", weight_map={"a": "../model/model.safetensors"}),
        r"first: '\.\./model/model\.safetensors'",
    ),
    "an index of an absolute path": (
        keys("model.safetensors.index.json", weight_map={"a": "/etc/passwd"}), "first: '/etc/passwd'"),
    "an index without a map": (content("model.safetensors.index.json", "[]"), "is .., not an object"),
    "an index of numbers": (keys("model.safetensors.index.json", weight_map={"a": 1}), "not an index of weight files"),
    "weights by a link": (link("model.safetensors", "/etc/hostname"), "is a link out of its folder"),
    "configuration by a link": (
        link("config.json", "../other.json", keep="../other.json"), r"config\.json is a link out"),
    "tokenizer by a link": (link("tokenizer.json", "/etc/passwd"), r"tokenizer\.json is a link out of its folder, to"),
    "a link to nothing": (link("tokenizer.json", "nothing.json"), "which does not exist"),
    "a link to itself": (link("tokenizer.json", "tokenizer.json"), "a link in a circle|which does not exist"),
    "a template's folder by a link": (link("additional_chat_templates", "/etc"), "is a link out of its folder"),
    "weights that are a pipe": (pipe("model.safetensors"), "neither a file nor a folder"),
    "a header of 2^63 bytes": (header(dict, length=1 << 63), "a header of 9,223,372,036,854,775,808 bytes"),
    "a header past the end": (header(dict, length=1 << 24), "is cut short"),
    "a header of 40 MB": (header(lambda _: b" " * (40 << 20)), "a header of 41,943,040 bytes; at most 33,554,432"),
    "a header that is no JSON": (header(lambda _: b"{'a': 1}"), "has a header that cannot be read"),
    "a header that is nested": (header(lambda _: b'{"a":' * 9000), "nested too deeply"),
    "a header that is a list": (header(lambda _: b"[]"), "not an object"),
    "overlapping matrices": (header(overlapping), "overlaps the one before it"),
    "a matrix twice": (header(repeated), "occurs twice"),
    "a gap": (header(gap), "leaves a gap before it"),
    "bytes of no matrix": (header(lambda _: {}), "holds bytes that belong to no matrix"),
    "values cut short": (header(dict, values=b""), "is cut short: its matrices take"),
    "an unknown dtype": (header(first(dtype="OBJECT")), "has the dtype 'OBJECT', which is none of"),
    "a shape of another size": (header(first(shape=[1 << 40, 1 << 40])), r"is \[1099511627776, 1099511627776\] in F32"),
    "a negative shape": (header(first(shape=[-1, -32])), r"has the shape \[-1, -32\]"),
    "offsets reversed": (header(first(data_offsets=[9, 1])), r"has the data_offsets \[9, 1\]"),
    "metadata that are no texts": (header(lambda e: e | {"__metadata__": {"a": {}}}), "has the metadata"),
    "weights of whole numbers": (integers, "has the dtype I32, but weights are floats"),
}  # fmt: skip


def config(**changes):
    return keys("adapter_config.json", **changes)


ADAPTERS = {
    "auto_mapping": (
        config(auto_mapping={"base_model_class": "Model", "parent_library": "evil"}),
        r"adapter_config\.json has the key `auto_mapping` .*may import a module",
    ),
    "auto_mapping with more": (
        config(auto_mapping={"base_model_class": "M", "parent_library": "transformers.models.x", "y": 1}),
        "`auto_mapping`",
    ),
    "megatron_core": (config(megatron_core="evil"), "`megatron_core` .'evil'"),
    "megatron_config": (config(megatron_config={"a": 1}), "`megatron_config`"),
    "a cache of corda": (
        config(init_lora_weights="corda", corda_config={"cache_file": "x.pt"}), r"`corda_config` .*read a file"),
    "a covariance of corda": (config(corda_config={"covariance_file": "../x.pt"}), "`corda_config`"),
    "a cache of loraga": (config(lora_ga_config={"cache_file": "/tmp/x.pt"}), "`lora_ga_config`"),
    "eva": (config(eva_config={"rho": 2}), "`eva_config`"),
    "tokenizer_kwargs": (
        config(peft_type="PROMPT_TUNING", tokenizer_kwargs={"trust_remote_code": True}),
        r"the `peft_type` 'PROMPT_TUNING'; staytrue loads adapters of LORA",
    ),
    "tokenizer_kwargs in LORA": (config(tokenizer_kwargs={"trust_remote_code": True}), "`tokenizer_kwargs`"),
    "tokenizer_name_or_path": (config(tokenizer_name_or_path="evil/repo"), "`tokenizer_name_or_path`"),
    "another kind": (config(peft_type="XLORA", adapters={"a": "../x"}), "'XLORA'"),
    "no kind": (config(peft_type=None), "the `peft_type` None"),
    "a replication of layers": (config(layer_replication=[[0, 1 << 30]]), "`layer_replication`"),
    "an unknown key": (config(loader="evil.py"), "`loader` .'evil.py'., which is no setting of plain LoRA"),
    "a rank of a billion": (config(r=10**9), r"`r` \(1000000000\), but the ranks .* are 1 to 4"),
    "a rank of text": (config(r="4"), r"`r` \('4'\)"),
    "a rank of one layer": (config(rank_pattern={"q_proj": 10**9}), r"`rank_pattern\.q_proj`"),
    "a key twice": (content("adapter_config.json", '{"peft_type": "LORA", "peft_type": "LORA"}'), "occurs twice"),
    "an infinite scale": (
        content("adapter_config.json", '{"peft_type": "LORA", "lora_alpha": Infinity}'),
        "Infinity is not a JSON number",
    ),
    "a pickle for weights": (pickled("adapter_model.bin"), r"adapter_model\.bin is a pickle"),
    "a .pt for weights": (pickled("adapter.pt"), r"adapter\.pt is a pickle"),
    "a pickle called safetensors": (pickled("adapter_model.safetensors"), "is no safetensors file|is cut short"),
    "weights by a link": (link("adapter_model.safetensors", "../model/model.safetensors"), "a link out of its folder"),
    "configuration by a link": (link("adapter_config.json", "../x.json", keep="../x.json"), "a link out of its folder"),
    "overlapping matrices": (header(overlapping), "overlaps the one before it"),
    "weights of whole numbers": (integers, "has the dtype I32, but weights are floats"),
    "weights of another kind": (
        header(lambda _: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, values=b"\0" * 4),
        "has no matrix of LoRA",
    ),
}  # fmt: skip


def test_the_corpus_has_sixty_folders():
    assert len(MODELS) + len(ADAPTERS) >= 60


@pytest.mark.parametrize(("edit", "sentence"), MODELS.values(), ids=MODELS)
def test_a_hostile_model_folder_is_refused_before_a_loader_runs(tmp_path, originals, no_loader, edit, sentence):
    folder = Path(shutil.copytree(originals / "model", tmp_path / "model"))
    edit(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        model_source.find(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("edit", "sentence"), ADAPTERS.values(), ids=ADAPTERS)
def test_a_hostile_adapter_folder_is_refused_before_a_loader_runs(tmp_path, originals, no_loader, edit, sentence):
    folder = Path(shutil.copytree(originals / "adapter", tmp_path / "adapter"))
    shutil.copytree(originals / "model", tmp_path / "model")
    edit(folder)
    for load in (loading.adapter_hash, lambda adapter: loading.with_adapters(None, {"a": adapter})):
        with pytest.raises(ModelError, match=sentence) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["auto_map", "an adapter inside", "overlapping matrices", "weights by a link"])
def test_weights_to_compare_with_are_checked_as_a_model_is(tmp_path, originals, no_loader, name):
    folder = Path(shutil.copytree(originals / "model", tmp_path / "model"))
    edit, sentence = MODELS[name]
    edit(folder)
    with pytest.raises(ModelError, match=sentence):
        WeightFiles.find(str(folder), None, {})


def test_what_honest_folders_hold_is_accepted(tmp_path, originals):
    """Values that are off, names of built-in kernels, a pickle that no loader opens, links inside, the hub's cache."""
    hub = tmp_path / "models--org--name"
    folder = hub / "snapshots" / "abc"
    shutil.copytree(originals / "model", folder)
    (hub / "blobs").mkdir()
    for file in list(folder.iterdir()):
        shutil.move(file, hub / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    keys("generation_config.json", auto_map=None)(folder)
    keys(trust_remote_code=False, attn_implementation="sdpa", _attn_implementation="eager")(folder)
    (folder / "tokenizer.model").symlink_to("tokenizer.json")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    adapter = shutil.copytree(originals / "adapter", tmp_path / "adapter")
    (adapter / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    library = {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers.models.qwen2.modeling_qwen2"}
    keys("adapter_config.json", auto_mapping=library, tokenizer_kwargs=None, a_new_setting_that_is_off={})(adapter)
    assert loading.load_model(model_source.find(str(folder)), adapter)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "spiece.model", "tokenizer.model.v3", "tekken.json"])
def test_the_vocabularies_of_older_tokenizers_are_accepted(tmp_path, originals, name):
    folder = Path(shutil.copytree(originals / "model", tmp_path / "model"))
    (folder / "tokenizer.json").rename(folder / name)
    assert model_source.find(str(folder))


def test_code_that_no_loader_runs_is_left_alone_where_transformers_knows_the_kind(tmp_path, originals):
    folder = Path(shutil.copytree(originals / "model", tmp_path / "model"))
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    keys(auto_map=names)(folder)
    (folder / "evil.py").write_text(
        "from pathlib import Path\nPath(__file__).parent.parent.joinpath('canary').touch()\n"
    )
    model = loading.load_model(model_source.find(str(folder)))
    assert type(model).__module__.startswith("transformers.models.")
    assert load_tokenizer(model_source.find(str(folder)))
    WeightFiles.find(str(folder), None, {})
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "settings", "sentence"),
    [
        ("config.json", {"_attn_implementation_internal": "evil/k"}, "_attn_implementation_internal"),
        ("tokenizer_config.json", {"trust_remote_code": True}, "trust_remote_code"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/x"}, "org/name is an adapter, not a model"),
    ],
)
def test_the_small_files_of_the_hub_are_checked_before_a_loader_runs(
    tmp_path, no_loader, monkeypatch, file, settings, sentence
):
    def cached_file(place, name, revision):
        if name != file:
            raise OSError
        (tmp_path / name).write_text(json.dumps(settings))
        return str(tmp_path / name)

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    for load in (loading.load_model, load_tokenizer, model_source.identity):
        with pytest.raises(ModelError, match=sentence):
            load(model_source.find("org/name"))
