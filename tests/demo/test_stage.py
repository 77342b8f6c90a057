"""The place of the demo: nothing of the user's is touched, and nothing in the way stops it."""

import io
import socket
from pathlib import Path

from pydantic import SecretStr

from agents_stream.demo.stage import plan_demo, prepare_folder
from agents_stream.settings import Settings
from agents_stream.up.screen import Screen
from tests.conftest import free_port


def screen() -> Screen:
    """A screen that nobody sees."""
    return Screen(io.StringIO())


def test_the_demo_touches_nothing_of_the_user() -> None:
    """Neither his Kafka, tools nor data: all is on this machine, in a folder of its own."""
    mine = Settings(
        bootstrap_servers="kafka.example:9094",
        security_protocol="SASL_SSL",
        sasl_username="me",
        sasl_password=SecretStr("mine"),
        whatsapp_url="https://wa.example",
        crm_url="https://crm.example",
        engine_webhook_url="https://engine.example",
        web_host="0.0.0.0",
        data_dir=Path("mine"),
        replication=3,
        promos_delay="3h",
    )
    plan = plan_demo(mine, None, screen())
    told = plan.settings
    assert told.bootstrap_servers.startswith("127.0.0.1:")
    assert "example" not in told.model_dump_json()
    assert (told.security_protocol, told.replication) == ("PLAINTEXT", 1)
    assert (told.web_host, told.data_dir, plan.fresh) == ("127.0.0.1", Path("mine/demo"), True)
    durations = (told.data_reply_timeout, told.promos_delay, told.promos_reply_timeout)
    assert [one * 60 for one in durations] == [360_000, 120_000, 600_000]


def test_ports_in_use_are_avoided_unless_they_were_chosen() -> None:
    """A Kafka at 9092 or a program at 6066 does not stop the demo; a wish stays a wish."""
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        out = io.StringIO()
        default = Settings(web_port=port)
        default.model_fields_set.clear()
        plan = plan_demo(default, None, Screen(out))
        assert plan.settings.web_port != port
        assert f"port {port} is in use" in out.getvalue()
        wish = plan_demo(
            Settings(web_port=port, bootstrap_servers=f"localhost:{port}"), port, screen()
        )
        assert (wish.settings.web_port, wish.sandbox_port) == (port, port)
        assert wish.settings.bootstrap_servers == f"127.0.0.1:{port}"
    ports = {plan.settings.web_port, plan.sandbox_port, plan.settings.bootstrap_servers[10:]}
    assert len(ports) == 3


def test_the_folder_is_emptied_and_nothing_else(tmp_path: Path) -> None:
    """A demo begins with nothing; a link leads nowhere, and the lock of `up` stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    demo = tmp_path / "demo"
    (demo / "logs").mkdir(parents=True)
    (demo / "logs" / "worker.log").write_text("")
    (demo / "up.lock").write_text("")
    (demo / "link").symlink_to(outside)
    prepare_folder(Settings(data_dir=demo))
    assert [path.name for path in demo.iterdir()] == ["up.lock"]
    assert (outside / "precious").exists()
