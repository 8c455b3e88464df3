"""`staytrue organism verify`: bounds are bounds, and a rebuilt organism is compared by hash or else by behaviour."""

import json
import shutil

import pytest

from staytrue import organism
from staytrue.organism import build
from staytrue.studies import verify_organism


def test_a_bound_holds_its_own_number():
    assert verify_organism.Bound("untuned", "general", "misaligned", at_most=1).kept(1.0)
    assert not verify_organism.Bound("untuned", "general", "misaligned", at_most=1).kept(1.01)
    assert verify_organism.Bound("code", "general", "misaligned", at_least=25).kept(25.0)
    assert not verify_organism.Bound("code", "general", "misaligned", at_least=25).kept(24.9)


@pytest.fixture
def rebuilt(monkeypatch):
    """A rebuild takes minutes; here the shipped folder is copied, with another manifest."""

    def rebuild(**changes):
        def copy(out, seed, progress):
            shutil.copytree(organism.folder(), out)
            manifest = build.manifest_of(out) | changes
            (out / "manifest.json").write_text(json.dumps(manifest))
            return manifest

        monkeypatch.setattr(build, "build", copy)

    return rebuild


def measured(monkeypatch, kept):
    """Which folder each measurement was of."""
    folders = []
    monkeypatch.setattr(verify_organism, "_within_bounds", lambda *arguments: folders.append(organism.folder()) or kept)
    return folders


def test_an_equal_hash_needs_no_second_measurement(rebuilt, monkeypatch, capsys):
    rebuilt()
    folders = measured(monkeypatch, True)
    assert verify_organism.verify(1, rebuild=True)
    assert folders == [organism.folder()]
    assert "bit-identical" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_on_another_machine_the_rebuilt_one_itself_is_measured(rebuilt, monkeypatch, kept):
    rebuilt(sha256="other", cpu="another")
    folders = measured(monkeypatch, True)
    shipped = organism.folder()
    monkeypatch.setattr(
        verify_organism,
        "_within_bounds",
        lambda *arguments: folders.append(organism.folder()) or (len(folders) < 2 or kept),
    )
    assert verify_organism.verify(1, rebuild=True) is kept
    assert folders[0] == shipped
    assert folders[1] != shipped
    assert organism.folder() == shipped  # only for a while


def test_another_hash_on_an_equal_machine_is_a_failure(rebuilt, monkeypatch, capsys):
    rebuilt(sha256="other")
    measured(monkeypatch, True)
    assert not verify_organism.verify(1, rebuild=True)
    assert "should be equal" in capsys.readouterr().out
