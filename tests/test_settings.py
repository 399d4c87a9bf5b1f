from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import settings
from launcher.errors import Misconfigured, NotFound
from launcher.settings import Target, example, load

DEFAULTS = asdict(Target())
TEXTS = ("image", "resource", "server")
NUMBERS = ("retries", "threads", "ttl_hours")
LAYERS = ("toml", "environment", "flags")
VALUES = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(["a", "b c", 'q"\\']) for key in TEXTS}
    | {key: st.integers(0, 99) for key in NUMBERS},
)  # fmt: skip


@given(st.fixed_dictionaries(dict.fromkeys(LAYERS, VALUES)))
def test_the_strongest_layer_wins_and_is_named(tmp_path_factory, layers):
    folder = tmp_path_factory.mktemp("settings")
    file = folder / "launcher.toml"
    file.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in layers["toml"].items()))
    variables = {f"LAUNCHER_{key.upper()}": str(v) for key, v in layers["environment"].items()}
    found = load(layers["flags"], cwd=folder, environment=variables)
    for key in (*TEXTS, *NUMBERS):
        named = {
            "toml": str(file),
            "environment": f"LAUNCHER_{key.upper()}",
            "flags": f"--{key.replace('_', '-')}",
        }
        setting = [layer for layer in LAYERS if key in layers[layer]]
        expected = layers[setting[-1]][key] if setting else DEFAULTS[key]
        assert getattr(found.target, key) == expected
        assert found.origins[key] == (named[setting[-1]] if setting else "default")
        assert found.is_set(key) == bool(setting)


def test_the_example_is_the_defaults_and_explains_each(tmp_path):
    (tmp_path / "launcher.toml").write_text(example())
    found = load({}, cwd=tmp_path, environment={})
    assert found.target == Target()
    assert all(found.is_set(field.name) for field in fields(Target)), "a key is missing"
    assert all(len(note) > 10 for note in settings._docstrings().values())
    assert settings._docstrings().keys() == DEFAULTS.keys()


def test_the_nearest_file_counts_and_a_named_one_wins(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "launcher.toml").write_text('image = "far"')
    assert load({}, cwd=inner, environment={}).target.image == "far"
    (inner.parent / "launcher.toml").write_text('image = "near"')
    assert load({}, cwd=inner, environment={}).target.image == "near"
    other = tmp_path / "other.toml"
    other.write_text('image = "named"')
    variables = {"LAUNCHER_CONFIG": str(other)}
    assert load({}, cwd=inner, environment=variables).target.image == "named"
    far = tmp_path / "launcher.toml"
    assert load({}, cwd=inner, config=far, environment=variables).target.image == "far"


def test_a_folder_of_that_name_is_not_passed_over(tmp_path):
    (tmp_path / "launcher.toml").mkdir()
    with pytest.raises(Misconfigured, match=r"launcher\.toml: cannot be read: Is a directory"):
        load({}, cwd=tmp_path, environment={})


def test_an_empty_variable_is_unset():
    assert not load({}, environment={"LAUNCHER_IMAGE": ""}).is_set("image")


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("stroe = 1", "stroe: no such key", "did you mean store?"),
        ("[target]\nimage = 'x'", "target: no such key", ""),
        ("retries = '3'", "retries: wants a whole number from 0, not '3'", ""),
        ("retries = true", "retries: wants a whole number from 0, not True", ""),
        ("retries = -1", "retries: wants a whole number from 0, not -1", ""),
        ("cpu_per_npu = 0", "cpu_per_npu: wants a whole number from 1", ""),
        ("image = 1", "image: wants text in quotes, not 1", ""),
        ("backend = 'loacl'", "backend: no such backend 'loacl'", "did you mean local?"),
        ("image =", "is not TOML", "--example"),
        ("image = '\udcff'", "is not TOML", "--example"),
        ("store_endpoint = 'minio:9000'", "'minio:9000' is no address of a server", "https://host"),
        ("store_endpoint = 'ftp://minio'", "is no address of a server", "https://host"),
        ("store_endpoint = 'https://'", "is no address of a server", "https://host"),
        ("store_endpoint = 'https://h:x'", "is no address of a server", "https://host:port"),
        ("store_endpoint = 'https://h:70000'", "is no address of a server", "https://host:port"),
        ("store_endpoint = 'https://[h'", "is no address of a server", "https://host"),
        ("store_endpoint = 'https://a b'", "is no address of a server", "https://host"),
        ("store_endpoint = 'https://h/bucket'", "names more than a server", "https://h; bucket"),
        ("store_endpoint = 'https://h?x=1'", "names more than a server", "https://h; bucket"),
        ("store_endpoint_here = 'http://me:hunter2@h'", "here: holds a user name", "Secret"),
        ("store_region = 'eu west'", "'eu west' is no name of a region", "us-east-1"),
        ("store_addressing = 'paht'", "no such addressing 'paht'", "did you mean path?"),
        ("store_checksum = 'crc'", "no such checksum 'crc'", "sha256"),
        ("max_grace_seconds = -1", "wants a whole number from 0", ""),
        ("store = 's3://me:hunter2@host/x'", "store: holds a user name or password", "Secret"),
    ],
)
def test_a_bad_file_is_told_by_path_and_key(tmp_path, text, told, hint):
    path = tmp_path / "launcher.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Misconfigured) as caught:
        load({}, cwd=tmp_path, environment={})
    assert caught.value.text.startswith(f"{path}: ")
    assert told in caught.value.text
    assert hint in caught.value.hint
    assert "hunter2" not in caught.value.text + caught.value.hint


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LAUNCHER_STROE": "x"}, "LAUNCHER_STROE: no such variable"),
        ({"LAUNCHER_RETRIES": "many"}, "LAUNCHER_RETRIES: wants a whole number"),
        ({"LAUNCHER_HUB_ENDPOINT": "https://u:hunter2@hub"}, "LAUNCHER_HUB_ENDPOINT: holds a user"),
    ],
)
def test_a_bad_variable_is_told_by_name(tmp_path, variables, told):
    with pytest.raises(Misconfigured, match=told) as caught:
        load({}, cwd=tmp_path, environment=variables)
    assert "hunter2" not in caught.value.text


SECRETS = ("service_account", "image_pull_secret", "store_secret", "hub_secret")


@pytest.mark.parametrize("key", ["namespace", *SECRETS])
@pytest.mark.parametrize("value", ["Bad Name", "Bad_Name", "a b", "A", "-a", "a..b", "a" * 254])
def test_a_name_that_no_object_has_is_told_by_its_setting(key, value):
    with pytest.raises(Misconfigured) as caught:
        load({}, environment={f"LAUNCHER_{key.upper()}": value})
    assert caught.value.text.startswith(f"LAUNCHER_{key.upper()}: {value[:20]!r}"[:-1])
    assert "is no name of an object" in caught.value.text
    assert "lower case letters" in caught.value.hint


def test_the_names_that_objects_have_pass():
    for key in SECRETS:
        for value in ("keys", "team.art-1", "a" * 253, ""):
            assert getattr(load({key: value}, environment={}).target, key) == value
    assert load({"namespace": "a" * 63}, environment={}).target.namespace == "a" * 63
    for value in ("team.art", "a" * 64):
        with pytest.raises(Misconfigured, match="is no name of an object"):
            load({"namespace": value}, environment={})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("https://s3.example", "https://s3.example"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("", ""),
    ],
)
def test_an_endpoint_is_a_server_and_a_slash_is_no_path(text, value):
    found = load({"store_endpoint": text}, environment={}).target
    assert found.store_endpoint == value


def test_a_named_file_has_to_exist(tmp_path):
    with pytest.raises(NotFound, match=r"gone\.toml: no such file"):
        load({}, config=tmp_path / "gone.toml", environment={})
    with pytest.raises(Misconfigured, match="cannot be read"):
        load({}, config=tmp_path, environment={})


def test_a_flag_with_a_name_of_its_own_is_told_by_it():
    found = load({"priority_class": "high", "queue_engine": "kueue"}, environment={})
    assert found.origins["priority_class"] == "--priority"
    assert found.origins["queue_engine"] == "--queue-engine"


def test_a_queue_has_one_of_two_engines(tmp_path):
    (tmp_path / "launcher.toml").write_text('queue_engine = "kueu"')
    with pytest.raises(Misconfigured, match="no such queue engine 'kueu'") as caught:
        load({}, cwd=tmp_path, environment={})
    assert caught.value.hint == "did you mean kueue?"
    with pytest.raises(Misconfigured) as caught:
        load({}, environment={"LAUNCHER_QUEUE_ENGINE": "slurm"})
    assert caught.value.hint == "there are kueue, volcano"
