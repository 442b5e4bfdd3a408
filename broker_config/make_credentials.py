#!/usr/bin/env python3
"""Make what mosquitto-tls.conf needs: a development CA, a server certificate, users, access list.

    python3 broker_config/make_credentials.py --out credentials --fleet home \
        --host broker.local --host 192.168.1.10 \
        --agent pi-1 --agent pi-2 --coordinator coordinator --client alice

It needs nothing but Python and the `openssl` command. Everything is written with mode 0600:

    ca.crt, ca.key            the CA; devices want ca.crt, ca.key may be moved off the broker
    server.crt, server.key    the broker's certificate, for localhost and every --host
    passwords, acl            Mosquitto's password file and access list
    mosquitto.conf            mosquitto-tls.conf for this directory, to run from anywhere
    clients/<user>.password   what goes to each device or person

`--add` adds users to an existing directory; Mosquitto reads them at SIGHUP.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import ipaddress
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = "/etc/mosquitto/halomq"
ROLES = ("agent", "standby", "coordinator", "client")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
# What the broker has no business with.
UNSHARED = ("ca.key", "clients")
CA_DAYS = 3650
# Some TLS libraries refuse server certificates that are valid for longer than this.
SERVER_DAYS = 825
# mosquitto_passwd's own figures in 2.0. The passwords are 192 random bits, which no stretching can
# improve, and the broker hashes in the thread that also delivers halos.
ROUNDS = 101
SALT_BYTES = 12

CA_CONFIG = """[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = HaloMQ development CA
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
SERVER_CONFIG = """[req]
prompt = no
distinguished_name = name
[name]
CN = HaloMQ broker
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


class CredentialsError(Exception):
    """What the person who runs this must know or change."""


def hash_password(password: str) -> str:
    """Return `password` as Mosquitto's password file has it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS)
    return f"$7${ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def access_list(fleet: str, users: dict[str, str], template: str) -> str:
    """Return the blocks of `users` (name: role) in `fleet`, made from the template's roles."""
    blocks = {}
    for part in template.split("#: role ")[1:]:
        role, _, block = part.partition("\n")
        blocks[role.strip()] = block.strip() + "\n"
    return "".join(
        "\n" + blocks[role].replace("<user>", user).replace("<fleet>", fleet)
        for user, role in users.items()
    )


def subject_names(hosts: list[str]) -> str:
    """Return openssl's subjectAltName for `hosts` and this machine's loopback."""
    names = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
    return ", ".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)


def is_address(host: str) -> bool:
    """Tell an address from a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    # A scope ("fe80::1%eth0") means nothing on another machine.
    return "%" not in host


def write(path: Path, text: str) -> None:
    """Write a file that only its owner can ever have read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def openssl(*arguments: str | Path) -> None:
    """Run the openssl command."""
    command = ["openssl", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise CredentialsError(f"`{' '.join(command)}` failed: {run.stderr.strip()}")


def make_certificates(out: Path, hosts: list[str]) -> None:
    """Make the CA and the broker's certificate in `out`."""
    if shutil.which("openssl") is None:
        raise CredentialsError("the `openssl` command is missing: apt-get install openssl")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    config, request = out / "openssl.cnf", out / "server.csr"
    write(config, CA_CONFIG)
    ca = ("-keyout", out / "ca.key", "-out", out / "ca.crt", "-days", str(CA_DAYS))
    openssl("req", "-x509", "-config", config, *key, *ca)
    write(config, SERVER_CONFIG.format(names=subject_names(hosts)))
    openssl("req", "-config", config, *key, "-keyout", out / "server.key", "-out", request)
    serial = f"0x{secrets.token_hex(16)}"
    issuer = ("-CA", out / "ca.crt", "-CAkey", out / "ca.key", "-set_serial", serial)
    leaf = ("-extfile", config, "-extensions", "extensions", "-out", out / "server.crt")
    openssl("x509", "-req", "-in", request, "-days", str(SERVER_DAYS), *issuer, *leaf)
    config.unlink()
    request.unlink()


def make_users(out: Path, fleet: str, users: dict[str, str]) -> None:
    """Add `users` to the password file and the access list in `out`."""
    passwords, acl, clients = out / "passwords", out / "acl", out / "clients"
    clients.mkdir(mode=0o700, exist_ok=True)
    lines = passwords.read_text(encoding="utf-8") if passwords.exists() else ""
    known = {line.partition(":")[0] for line in lines.splitlines()}
    if taken := sorted(known & users.keys()):
        raise CredentialsError(f"{passwords} has {', '.join(taken)} already")
    for user in users:
        password = secrets.token_urlsafe(24)
        write(clients / f"{user}.password", password + "\n")
        lines += f"{user}:{hash_password(password)}\n"
    granted = acl.read_text(encoding="utf-8") if acl.exists() else ""
    granted += access_list(fleet, users, (HERE / "acl").read_text(encoding="utf-8"))
    write(passwords, lines)
    write(acl, granted)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments, with `users` (name: role)."""
    parser = argparse.ArgumentParser(
        description="Make a development CA, a broker certificate, users and an access list.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("--fleet", default="home", help="default: home")
    parser.add_argument("--host", action="append", default=[], help="the broker's names, addresses")
    for role in ROLES:
        parser.add_argument(f"--{role}", action="append", default=[], metavar="USER")
    parser.add_argument("--owner", help="the user that Mosquitto runs as (only as root)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--add", action="store_true", help="add users, keep all else")
    mode.add_argument("--force", action="store_true", help="replace what is there")
    options = parser.parse_args(arguments)
    pairs = [(user, role) for role in ROLES for user in getattr(options, role)]
    options.users = dict(pairs)
    if len(options.users) < len(pairs):
        parser.error("each user can be named once, and has one role")
    for name in (options.fleet, *options.users):
        if not NAME.fullmatch(name):
            parser.error(f"{name!r} is no valid name: letters, digits, '.', '_', '-', at most 64")
    for host in options.host:
        # An address of IPv6 has colons; all else has to look like a host's name.
        if not HOST.fullmatch(host) and not is_address(host):
            parser.error(f"{host!r} is no host name or address")
    return options


def make(options: argparse.Namespace) -> None:
    """Do what the options say."""
    out: Path = options.out.resolve()
    exists = (out / "passwords").exists() or (out / "ca.key").exists()
    if options.add:
        if not exists:
            raise CredentialsError(f"{out} has no credentials to add to: leave out --add")
        make_users(out, options.fleet, options.users)
    else:
        if exists and not options.force:
            raise CredentialsError(f"{out} has credentials: --add adds users, --force replaces all")
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_certificates(out, options.host)
        for stale in (out / "passwords", out / "acl", *out.glob("clients/*.password")):
            stale.unlink(missing_ok=True)
        make_users(out, options.fleet, options.users)
        settings = (HERE / "mosquitto-tls.conf").read_text(encoding="utf-8")
        settings = settings.replace(INSTALLED, str(out))
        write(out / "mosquitto.conf", f"{settings}\npersistence_location {out}/\n")
    if options.owner:
        for path in (out, *(path for path in out.iterdir() if path.name not in UNSHARED)):
            shutil.chown(path, options.owner, options.owner)


def main(arguments: list[str] | None = None) -> int:
    """Make the credentials; return the exit status."""
    options = parse(arguments)
    os.umask(0o077)
    try:
        make(options)
    except (CredentialsError, OSError, LookupError) as error:
        sys.stderr.write(f"make_credentials: {error}\n")
        return 1
    sys.stdout.write(f"{options.out}: {len(options.users)} users; passwords are in clients/\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
