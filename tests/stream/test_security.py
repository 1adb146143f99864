"""TLS and SASL: read from a file, secrets from files or the environment, shown nowhere, and taken by a real broker."""

import dataclasses
import datetime
import ipaddress
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import InvalidSetting, StreamError, UnknownName
from common.events import encode_event
from stream.connect import open_log
from stream.consumer import StreamWorker, WorkerSettings
from stream.kafka_log import KafkaLog
from stream.producer import produce
from stream.replay import read_letters, replay_letters
from stream.security import PASSWORD, PLAIN, Secret, Security, read_security
from tests.brokers import HOST, KafkaNode, free_ports, kafka_home
from tests.stream.test_state import fed
from tests.stream.topics import small_mf, some_events

WORD = "open-sesame"


def settings_file(folder: Path, text: str) -> Path:
    (folder / "ca.pem").write_text("a certificate")
    (folder / "password.secret").write_text(f"{WORD}\n")
    path = folder / "kafka.toml"
    path.write_text(text)
    return path


SASL = """\
protocol = "SASL_SSL"
ca_file = "ca.pem"
mechanism = "SCRAM-SHA-512"
user = "learner"
password_file = "password.secret"
"""


def test_no_file_is_a_broker_that_asks_for_nothing() -> None:
    assert read_security(None, {}) is PLAIN
    assert PLAIN.kafka_options() == {}


def test_a_file_becomes_the_clients_options(tmp_path: Path) -> None:
    security = read_security(settings_file(tmp_path, SASL), {})
    assert security.kafka_options() == {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(tmp_path / "ca.pem"),
        "ssl_certfile": None,
        "ssl_keyfile": None,
        "ssl_password": None,
        "ssl_check_hostname": True,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "learner",
        "sasl_plain_password": WORD,
    }
    assert read_security(tmp_path / "kafka.toml", {PASSWORD: "other"}).password == Secret("other")


def test_the_faster_client_gets_the_same_settings(tmp_path: Path) -> None:
    security = read_security(settings_file(tmp_path, SASL), {})
    assert security.librdkafka_options() == {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "learner",
        "sasl.password": WORD,
    }
    assert PLAIN.librdkafka_options() == {"security.protocol": "PLAINTEXT"}
    with pytest.raises(UnknownName, match="Kafka client"):
        open_log("h:1", client="java")  # type: ignore[arg-type]  # wrong on purpose


def test_secrets_show_themselves_nowhere(tmp_path: Path) -> None:
    security = read_security(settings_file(tmp_path, SASL), {})
    settings = WorkerSettings("h:1", "clicks", tmp_path, security=security)
    shown = [repr(security), str(security), repr(settings), f"{security.password}", repr(KafkaLog("h:1", security))]
    assert not [text for text in shown if WORD in text]
    with pytest.raises(TypeError):
        dataclasses.replace(security, password=Secret(WORD)).password > 1  # type: ignore[operator]  # noqa: B015
    assert Secret(WORD) != WORD
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("protocol = 5", UnknownName, "security protocol '5'"),
        ('protocol = "TLS"', UnknownName, "security protocol 'TLS'"),
        ('protocol = "SASL_SSL"\nmechanism = "GSSAPI"', UnknownName, "GSSAPI"),
        ('protocol = "SASL_SSL"\nmechanism = "PLAIN"\nuser = "u"', InvalidSetting, "without a user or a password"),
        ('password = "in the clear"', UnknownName, "key in .*'password'"),
        ('ca_file = "nowhere.pem"', InvalidSetting, r"nowhere\.pem"),
        ('password_file = "nowhere"', InvalidSetting, "nowhere"),
        ('check_hostname = "no"', InvalidSetting, "true or false"),
        ("not toml", InvalidSetting, "a TOML file"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        read_security(settings_file(tmp_path, text), {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"none\.toml"):
        read_security(tmp_path / "none.toml", {})


def certificate(folder: Path) -> None:
    """Write `broker.pem` (key and certificate) and `ca.pem` (the certificate, which signs itself) for loopback."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a broker under test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    chain = built.public_bytes(encoding)
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "broker.pem").write_bytes(private + chain)
    (folder / "ca.pem").write_bytes(chain)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[KafkaNode]:
    """Give a broker that speaks TLS only, and only with who knows a password."""
    home = kafka_home()
    certificate(tmp_path)
    port, controller = free_ports(2)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    properties = f"""\
listeners=SASL_SSL://{HOST}:{port},CONTROLLER://{HOST}:{controller}
advertised.listeners=SASL_SSL://{HOST}:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
inter.broker.listener.name=SASL_SSL
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={login} username="b" password="b" user_b="b" user_learner="{WORD}";
ssl.keystore.type=PEM
ssl.keystore.location={tmp_path / "broker.pem"}
ssl.truststore.type=PEM
ssl.truststore.location={tmp_path / "ca.pem"}
"""
    node = KafkaNode(home, tmp_path / "kafka", properties, (port, controller))
    node.launch()
    try:
        node.await_ready(port_only=True)
        yield node
    finally:
        node.end()


@pytest.mark.slow
@pytest.mark.kafka
# kafka-python leaves sockets that were refused to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_every_client_speaks_tls_and_says_who_it_is(
    secured: KafkaNode, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "word").write_text(WORD)
    (tmp_path / "kafka.toml").write_text(
        'protocol = "SASL_SSL"\nca_file = "ca.pem"\nmechanism = "PLAIN"\nuser = "learner"\npassword_file = "word"\n'
    )
    security = read_security(tmp_path / "kafka.toml", {})
    log = KafkaLog(secured.servers, security)
    events = some_events(50)
    journal = tmp_path / "sent.json"
    assert produce(events, log=log, topic=topic, journal=journal, limit=20).acked == 20
    assert produce(events, log=log, topic=topic, journal=journal).acked == 30
    sink = log.sink("test")
    sink.send(topic, b"bad", partition=0)
    sink.flush(30)
    sink.close()
    settings = WorkerSettings(secured.servers, topic, tmp_path / "store", until_events=51, security=security)
    report = StreamWorker(settings, small_mf()).run()
    assert report.dead_letters == 1
    assert report.state_sha256 == fed([encode_event(event) for event in events]).learner.state_sha256()
    assert [letter.offset for letter in read_letters(log, topic)] == [50]
    assert replay_letters(log, topic).replayed == 1
    pytest.importorskip("confluent_kafka", reason="the extra `fast` is not installed")
    fast = open_log(secured.servers, security, "librdkafka")
    assert produce(events, log=fast, topic=f"{topic}-fast").acked == 50
    settings = WorkerSettings(
        secured.servers, f"{topic}-fast", tmp_path / "fast", until_events=50, security=security, client="librdkafka"
    )
    assert StreamWorker(settings, small_mf()).run().state_sha256 == report.state_sha256
    wrong = dataclasses.replace(security, password=Secret("wrong-word"))
    with pytest.raises(StreamError) as refused:
        KafkaLog(secured.servers, wrong).await_topic(topic, 0)
    with pytest.raises(StreamError):
        KafkaLog(secured.servers, Security()).await_topic(topic, 0)
    assert WORD not in caplog.text
    assert "wrong-word" not in caplog.text + str(refused.value)
