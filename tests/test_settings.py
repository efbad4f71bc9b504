"""Settings say in one sentence what is wrong with them."""

import re
from pathlib import Path

import pytest

from smart_assets.errors import ConfigurationError
from smart_assets.formats import ImageFormat
from smart_assets.settings import PREFIX, Settings, is_loopback, load_settings, misspelt_variables


def test_the_defaults_serve_this_machine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert (settings.host, settings.port, settings.default_storage) == ("127.0.0.1", 8000, "local")
    assert settings.open_mode


def test_lists_are_separated_by_commas_and_groups_by_two_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETS_POLICY__FORMATS", "jpeg, png")
    monkeypatch.setenv("ASSETS_API_KEYS", "a-key-of-sixteen-characters,another-key-0123456789")
    settings = load_settings(host="0.0.0.0")
    assert settings.policy.formats == (ImageFormat.JPEG, ImageFormat.PNG)
    assert len(settings.api_keys) == 2


def test_settings_come_from_a_dotenv_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("ASSETS_PORT=9000\nOTHER=1\n")
    assert load_settings().port == 9000


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_an_open_service_refuses_to_be_reached_by_others(host: str) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_API_KEYS"):
        load_settings(host=host)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASSETS_PORT", "http"),
        ("ASSETS_PORT", "70000"),
        ("ASSETS_MAX_PIXELS", "0"),
        ("ASSETS_PUBLIC_URL", "assets.example.com"),
        ("ASSETS_DATABASE_URL", "mysql://x"),
        ("ASSETS_DATABASE_URL", "postgresql+asyncpg://x"),
        ("ASSETS_POSTGRESQL__WRITERS", "0"),
        ("ASSETS_POLICY__FORMATS", "jpeg,tiff"),
        ("ASSETS_API_KEYS", "short"),
        ("ASSETS_API_KEYS", ","),
        ("ASSETS_SIGNING_KEYS", "short"),
        ("ASSETS_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        load_settings()


def test_a_misspelt_variable_is_pointed_out_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETS_MAX_UPLOAD_BYTE", "1")
    monkeypatch.setenv("ASSETS_POLICY__MIN_BYTES", "1")
    assert misspelt_variables() == ["ASSETS_MAX_UPLOAD_BYTE is not a setting; did you mean ASSETS_MAX_UPLOAD_BYTES?"]


def test_a_secret_never_shows_in_a_representation() -> None:
    settings = load_settings(api_keys="very-secret-key-0123456789")
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("group", ["s3", "cloudinary", "gcs", "azure"])
def test_every_setting_of_a_storage_is_documented(group: str) -> None:
    document = (Path(__file__).parent.parent / "docs/storages.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"`{PREFIX}{group.upper()}__([A-Z0-9_]+)`", document))
    settings = type(getattr(Settings(), group))
    assert documented == {name.upper() for name in settings.model_fields}


@pytest.mark.parametrize("url", ["sqlite:///a.sqlite3", "postgresql://ann:sesame@db/assets", "postgres://db/assets"])
def test_a_database_is_told_and_its_password_is_not(url: str) -> None:
    settings = load_settings(database_url=url)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert "sesame" not in repr(settings)
