"""Settings: what is read from where, what is refused and in which words, and that the documentation agrees."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from bridge.settings import (
    PREFIX,
    Settings,
    SettingsError,
    environment,
    option_prefix,
    option_variables,
    read_options,
    unknown_variables,
)
from tests import render_configuration

ROOT = Path(__file__).parent.parent


def load(**variables: str) -> Settings:
    return Settings.load({PREFIX + name: value for name, value in variables.items()}, env_file=None)


def refusal(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**variables)
    return str(caught.value)


# Values


def test_defaults() -> None:
    settings = load()
    assert settings.backend == "pocketsphinx"
    assert settings.host == "127.0.0.1"
    assert settings.api_keys == ()


def test_every_kind_of_value() -> None:
    settings = load(
        BACKEND="scripted",
        PORT="0",
        IDLE_SECONDS="0.5",
        INSECURE="yes",
        API_KEYS=" one, two,,",
        LOG_FORMAT="text",
    )
    assert settings.backend == "scripted"
    assert settings.port == 0
    assert settings.idle_seconds == 0.5
    assert settings.insecure is True
    assert settings.api_keys == ("one", "two")
    assert settings.log_format == "text"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "http", "integer"),
        ("PORT", "65536", "65535"),
        ("PORT", "-1", "greater than or equal to 0"),
        ("PORT", "80.5", "integer"),
        ("INSECURE", "maybe", "boolean"),
        ("IDLE_SECONDS", "0", "greater than 0"),
        ("IDLE_SECONDS", "nan", "finite"),
        ("IDLE_SECONDS", "inf", "finite"),
        ("IDLE_SECONDS", "1e9", "604800"),
        ("IDLE_SECONDS", "a minute", "number"),
        ("MAX_MESSAGE_BYTES", "1", "1024"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LANGUAGE", "x" * 36, "at most 35 characters"),
    ],
)
def test_a_bad_value_is_named(name: str, value: str, allowed: str) -> None:
    sentence = refusal(**{name: value})
    assert sentence.startswith(f"STT_{name}: {value!r} is not allowed: it should ")
    assert allowed in sentence


def test_every_bad_value_is_named_at_once() -> None:
    lines = refusal(PORT="x", LOG_FORMAT="y", THREADS="0").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["STT_PORT", "STT_THREADS", "STT_LOG_FORMAT"]


def test_a_long_value_is_cut() -> None:
    assert len(refusal(PORT="9" * 10_000)) < 200


def test_empty_is_unset() -> None:
    assert load(PORT="", BACKEND="", TLS_CERT="", API_KEYS="") == load()


def test_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().port = 1


def test_an_unknown_field_is_a_mistake_of_the_code() -> None:
    with pytest.raises(SettingsError, match="STT_SPEED"):
        Settings.load({}, None, speed=1)


# The certificate


def test_tls_takes_both_files(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.touch()
    key.touch()
    settings = load(TLS_CERT=str(cert), TLS_KEY=str(key))
    assert (settings.tls_cert, settings.tls_key) == (cert, key)
    assert "belong together" in refusal(TLS_CERT=str(cert))
    assert "belong together" in refusal(TLS_KEY=str(key))
    missing = str(tmp_path / "missing.pem")
    assert refusal(TLS_CERT=str(cert), TLS_KEY=missing) == (
        f"STT_TLS_KEY: {missing!r} is not allowed: it should be a file that exists"
    )


# Several processes


@pytest.mark.parametrize(
    ("name", "value"),
    [("EVENT_LOG", "off"), ("EVENT_LOG", "sqlite::memory:"), ("STORE", "sqlite::memory:"), ("ADMIN_KEYS", "hush")],
)
def test_what_processes_could_not_share_is_refused(name: str, value: str) -> None:
    assert load(**{name: value}, PROCESSES="1").processes == 1
    sentence = refusal(**{name: value}, PROCESSES="2")
    assert sentence.startswith(f"STT_{name}: ")
    assert "STT_PROCESSES is above 1" in sentence
    assert "hush" not in sentence


def test_several_processes_where_the_system_shares_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert load().processes == 1
    assert refusal(PROCESSES="2").startswith("STT_PROCESSES: '2' is not allowed: it should be 1 where")


def test_the_share_of_one_process() -> None:
    settings = load(PROCESSES="3", MAX_SESSIONS="100", MAX_CONNECTIONS="300", MAX_FILES="1", KEY_SESSIONS="5")
    share = settings.share()
    assert (share.max_sessions, share.max_connections, share.max_files) == (34, 100, 1)
    assert share == settings.model_copy(update={"max_sessions": 34, "max_connections": 100})
    assert load().share() == load()


def test_settings_can_be_handed_on(tmp_path: Path) -> None:
    """As the parent of several processes does."""
    (tmp_path / "key.pem").touch()
    settings = load(API_KEYS="a,b", TRUSTED_PROXIES="10.0.0.0/8", JWT_KEY_FILE=str(tmp_path / "key.pem"), PROCESSES="2")
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


# Keys


def test_a_key_cannot_be_of_both_kinds() -> None:
    settings = load(API_KEYS="a,b", ADMIN_KEYS="c")
    assert (settings.api_keys, settings.admin_keys) == (("a", "b"), ("c",))
    sentence = refusal(API_KEYS="a,hush", ADMIN_KEYS="c,hush")
    assert sentence.startswith("STT_ADMIN_KEYS: a key of STT_API_KEYS is not allowed")
    assert "hush" not in sentence
    assert "the value given" in refusal(ADMIN_KEYS="h\u00fcsh")


# Where values come from


def test_order_of_precedence(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("STT_PORT=1\nSTT_HOST=localhost\nSTT_LANGUAGE='de-DE' # comment\nexport STT_THREADS=3\n")
    settings = Settings.load({"STT_PORT": "2", "STT_HOST": "::1"}, file, port=3, host=None)
    assert settings.port == 3
    assert settings.host == "::1"
    assert settings.language == "de-DE"
    assert settings.threads == 3


def test_an_empty_variable_hides_that_of_the_file(tmp_path: Path) -> None:
    """So that `STT_API_KEYS= stt-bridge serve` is the default, whatever .env says."""
    file = tmp_path / ".env"
    file.write_text("STT_PORT=1\nSTT_THREADS\n")
    assert Settings.load({"STT_PORT": ""}, file).port == 8_000


def test_env_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("STT_PORT=1234\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STT_PORT", raising=False)
    assert Settings.load().port == 1_234
    monkeypatch.setenv("STT_PORT", "4321")
    assert Settings.load().port == 4_321
    assert environment()["STT_PORT"] == "4321"


def test_a_missing_env_file_is_none(tmp_path: Path) -> None:
    assert Settings.load({}, tmp_path / "nowhere") == load()


# Secrets


def test_secrets_are_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({}, None, api_keys=12345)
    assert "STT_API_KEYS: the value given" in str(caught.value)
    assert "12345" not in str(caught.value)


# Unknown variables


def test_unknown_variables() -> None:
    env = {
        "STT_BACKND": "x",
        "STT_ZZZZZZZZ": "x",
        "STT_PORT": "1",
        "STT_API_KEY": "of the client commands",
        "STT_SCRIPTED_MODE": "script",
        "STT_SCRIPTED_MODUS": "script",
        "STT_ABSENT_MODEL": "x",
        "PATH": "x",
    }
    assert unknown_variables(env, ["STT_SCRIPTED_MODE"], [option_prefix("absent")]) == [
        "STT_BACKND is not a setting; did you mean STT_BACKEND?",
        "STT_SCRIPTED_MODUS is not a setting; did you mean STT_SCRIPTED_MODE?",
        "STT_ZZZZZZZZ is not a setting",
    ]


# The engines' options


@dataclass(frozen=True)
class Options:
    model: str = field(default="small", metadata={"help": "Which."})
    threads: int | None = None
    mode: Literal["fast", "good"] = "fast"
    hints: tuple[str, ...] = ()
    pairs: tuple[str, ...] | None = None
    token: int = field(default=0, metadata={"secret": True})


def test_options() -> None:
    assert option_variables("my-engine", None) == []
    assert option_variables("my-engine", Options)[:2] == ["STT_MY_ENGINE_MODEL", "STT_MY_ENGINE_THREADS"]
    assert read_options("my-engine", None, {"STT_MY_ENGINE_X": "1"}) is None
    assert read_options("my-engine", Options, {}) == Options()
    env = {
        "STT_MY_ENGINE_MODEL": "large",
        "STT_MY_ENGINE_THREADS": "4",
        "STT_MY_ENGINE_HINTS": "a, b",
        "STT_MY_ENGINE_PAIRS": "c",
        "STT_OTHER_MODE": "good",
    }
    assert read_options("my-engine", Options, env) == Options("large", 4, "fast", ("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("THREADS", "many", "'many' is not allowed: it should be a valid integer"),
        ("MODE", "slow", "'slow' is not allowed: it should be 'fast' or 'good'"),
        ("TOKEN", "s3cret", "the value given is not allowed"),
    ],
)
def test_bad_options(name: str, value: str, shown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_options("my-engine", Options, {f"STT_MY_ENGINE_{name}": value})
    assert str(caught.value).startswith(f"STT_MY_ENGINE_{name}: {shown}")
    assert "s3cret" not in str(caught.value)


# The documentation


@pytest.mark.parametrize("path", list(render_configuration.files()), ids=lambda path: str(path.name))
def test_rendered_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == render_configuration.files()[path], "run: python -m tests.render_configuration"


def test_sections_are_those_of_the_code() -> None:
    source = (ROOT / "bridge" / "settings.py").read_text()
    body = source[source.index("class Settings(") : source.index("@model_validator")]
    found = re.findall(r"\n    # (.+)\n    (\w+):", body)
    assert {first: title for title, first in found} == dict(render_configuration.SECTIONS)


def test_every_setting_has_a_meaning() -> None:
    rows = [row for _, row in render_configuration.settings_rows()]
    for engine in render_configuration.CLASSES:
        rows += render_configuration.option_rows(engine)
    assert all(row.meaning.endswith(".") for row in rows)


def test_every_engine_is_documented() -> None:
    from backends.registry import _BUILT_IN

    assert list(render_configuration.CLASSES) == list(_BUILT_IN)


def test_the_example_is_the_default(tmp_path: Path) -> None:
    """With every `#` removed, nothing changes."""
    file = tmp_path / ".env"
    file.write_text(re.sub(r"^#(?=STT_)", "", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert Settings.load({}, file) == load()
    env: Any = environment({}, file)
    variables: list[str] = []
    for engine in render_configuration.CLASSES:
        from backends.registry import load_class

        options = load_class(engine).Options
        assert options is not None
        assert read_options(engine, options, env) == options()
        variables += option_variables(engine, options)
    assert not unknown_variables(env, variables)


@pytest.mark.parametrize(
    ("given", "names"),
    [("google", ("google",)), ("google,whisper", ("google", "whisper")), (" a , b,c ", ("a", "b", "c"))],
)
def test_backends_in_their_order(given: str, names: tuple[str, ...]) -> None:
    assert Settings.load({"STT_BACKEND": given}, None).backends == names


@pytest.mark.parametrize("given", [",", "google,", "google,,whisper", "google, google"])
def test_what_is_no_list_of_backends(given: str) -> None:
    with pytest.raises(SettingsError, match=r"STT_BACKEND: .* is not allowed: it should be a name, or different names"):
        Settings.load({"STT_BACKEND": given}, None)
