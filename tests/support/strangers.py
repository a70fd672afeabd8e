"""First messages of protocols without a plugin here, by their specifications and with filler bodies."""

from __future__ import annotations

from typing import Final

TCP: Final = {
    "tls record": bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03") + bytes(range(200)),
    "mqtt": bytes.fromhex("10 10 00 04") + b"MQTT" + bytes.fromhex("04 02 00 3c 00 04") + b"abcd",
    "rdp": bytes.fromhex("03 00 00 13 0e e0 00 00 00 00 00 01 00 08 00 03 00 00 00"),
    "postgres ssl": bytes.fromhex("00 00 00 08 04 d2 16 2f"),
    "postgres": bytes.fromhex("00 00 00 20 00 03 00 00") + b"user\0me\0database\0db\0\0",
    "mongodb": bytes.fromhex("3a 00 00 00 01 00 00 00 00 00 00 00 d4 07 00 00") + bytes(42),
    "ldap": bytes.fromhex("30 0c 02 01 01 60 07 02 01 03 04 00 80 00"),
    "smb2": bytes.fromhex("00 00 00 45 fe") + b"SMB" + bytes.fromhex("40 00") + bytes(59),
    "memcached binary": bytes.fromhex("80 0b 00 00 00 00 00 00 00 00 00 00") + bytes(12),
    "socks4": bytes.fromhex("04 01 00 50 c0 00 02 01") + b"me\0",
    "socks5": bytes.fromhex("05 01 00"),
    "openvpn": bytes.fromhex("00 0e 38") + bytes(range(1, 9)) + bytes(5),
    "bittorrent": b"\x13BitTorrent protocol" + bytes(48),
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "rtsp": b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "sip": b"OPTIONS sip:example.com SIP/2.0\r\n\r\n",
    "smtp": b"EHLO client.example\r\n",
    "proxy v1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "proxy v2": bytes.fromhex("0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 21 11 00 0c") + bytes(12),
    "sslv2 hello": bytes.fromhex("80 2e 01 03 01 00 15 00 00 00 10") + bytes(37),
    "tls alert": bytes.fromhex("15 03 01 00 02 02 28"),
}

UDP: Final = {
    "tls record": TCP["tls record"],
    "mqtt": TCP["mqtt"],
    "rdp": TCP["rdp"],
    "quic v1": bytes.fromhex("c3 00 00 00 01 08 83 94 c8 f0 3e 51 57 08 00 00 44 9e") + bytes(1182),
    "wireguard init": bytes.fromhex("01 00 00 00") + bytes(range(144)),
    "wireguard data": bytes.fromhex("04 00 00 00 01 00 00 00") + bytes(24),
    "stun": bytes.fromhex("00 01 00 00 21 12 a4 42") + bytes(range(12)),
    "ntp": bytes.fromhex("23 00 06 20") + bytes(44),
    "sntp": bytes.fromhex("1b") + bytes(47),
    "snmp": bytes.fromhex("30 26 02 01 01 04 06") + b"public" + bytes.fromhex("a0 19 02 04") + bytes(21),
    "raknet ping": b"\x01" + bytes(8) + bytes.fromhex("00ffff00fefefefefdfdfdfd12345678") + bytes(8),
    "rtp": bytes.fromhex("80 00 00 01 00 00 00 00 00 00 00 00") + bytes(160),
    "l2tp": bytes.fromhex("c8 02 00 14 00 00 00 00 00 00 00 00") + bytes(8),
    "dtls": bytes.fromhex("16 fe fd 00 00 00 00 00 00 00 00 00 20 01") + bytes(31),
    "tftp": b"\0\x01file\0octet\0",
    "empty": b"",
}
