"""The key file and the pseudonyms made with it."""

import hashlib
import hmac
import os
import stat

import pytest

from steatosis_tf.sources.pseudonym import create_key, normal_name, pseudonym, read_key


def test_a_new_key_is_for_its_owner_only(tmp_path):
    path = create_key(tmp_path / "study.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_key(path)) == 32


def test_two_keys_differ(tmp_path):
    assert read_key(create_key(tmp_path / "a")) != read_key(create_key(tmp_path / "b"))


def test_an_existing_key_is_never_replaced(tmp_path):
    path = create_key(tmp_path / "study.key")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Expected a path where no file is"):
        create_key(path)
    assert path.read_bytes() == before


def test_an_existing_key_is_never_replaced_on_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    key = read_key(create_key(tmp_path / "project.key"))
    with pytest.raises(ValueError, match="an existing file"):
        create_key(tmp_path / "project.key")
    assert read_key(tmp_path / "project.key") == key
    assert [path.name for path in tmp_path.iterdir()] == ["project.key"]


def test_no_key_inside_an_output(tmp_path):
    (tmp_path / "ingest.json").write_text("{}")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="outside every ingest output"):
        create_key(tmp_path / "images" / "study.key")


def test_no_folder_is_made_for_a_key(tmp_path):
    with pytest.raises(ValueError, match="Expected an existing folder"):
        create_key(tmp_path / "absent" / "study.key")


def test_a_missing_key_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="steatosis key FILE"):
        read_key(tmp_path / "absent.key")


@pytest.mark.parametrize("content", [b"", b"secret", b"\xff\xfe\0", b"steatosis-key-1 12"])
def test_other_files_are_no_key(tmp_path, content):
    path = tmp_path / "study.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="Expected a key file made by"):
        read_key(path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_key_others_can_read_is_refused(tmp_path):
    path = create_key(tmp_path / "study.key")
    path.chmod(0o640)
    with pytest.raises(ValueError, match=r"mode=0640.*chmod 600"):
        read_key(path)


def test_pseudonym_is_hmac_sha256_of_the_length_prefixed_parts():
    key = bytes(range(32))
    message = b"\0\0\0\0\0\0\0\x07patient" + b"\0\0\0\0\0\0\0\x03abc"
    expected = hmac.new(key, message, hashlib.sha256).hexdigest()[:16]
    assert pseudonym(key, "patient", "abc") == expected


def test_parts_kinds_and_keys_keep_pseudonyms_apart():
    key = bytes(32)
    made = {
        pseudonym(key, "patient", "ab", "c"),
        pseudonym(key, "patient", "a", "bc"),
        pseudonym(key, "study", "ab", "c"),
        pseudonym(b"\1" * 32, "patient", "ab", "c"),
    }
    assert len(made) == 4


@pytest.mark.parametrize(
    "written", ["DOE^JOHN", "Doe^John ", "doe, john", "John Doe", "Döe^Jöhn", "DOE^JOHN^^DR=Ideo"]
)
def test_spellings_of_a_name_share_their_words(written):
    assert normal_name(written) == ("doe", "john")
