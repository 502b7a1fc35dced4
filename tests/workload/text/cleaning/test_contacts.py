"""Contacts that are masked, and numbers of other kinds that are not."""

import pytest

from efftrain.workload.text.cleaning.contacts import mask_contacts

PHONES = """
+49 30 1234567|+49 (0)30 123456-0|+1 212 555 0123|+1-212-555-0123|+1 (212) 555-0123|+12125550123|+33 1 23 45 67 89
+44 20 7946 0958|+81-3-1234-5678|+86 138 0013 8000|+91 98765 43210|+358 40 1234567|+55 11 91234-5678|+39 06 1234567
0049 30 1234567|0033 1 23 45 67 89|(212) 555-0123|(212)555-0123|212-555-0123|212.555.0123|1-800-555-0199
212-555-0123 x12|030 1234567|030/1234567|(030) 123456|089 / 1234567|0171-1234567|01 23 45 67 89|01.23.45.67.89
06 01 02 03 04|020 7946 0958|(020) 7946 0958|01632 960 001|07700 900123|03-1234-5678|090-1234-5678|(02) 9876 5432
0412 345 678|044 123 45 67|+49\u00a030\u00a01234567
"""
OTHERS = """
2024-01-15|2024-01-15T10:00:00+01:00|01-02-2024|01.02.2024|01/02/2024|01.02.2024 12 Uhr|01.02.2024 12:30|12:30:45
1/2/2024 - 3/4/2024|1990-2000|1.2.3|2.13.0+cpu|0.12.3|1.0.0-rc.1|v02.03.2024.1|192.168.100.200|10.0.0.1
255.255.255.255:8080|2001:db8::1|00:1A:2B:3C:4D:5E|1234567890|0123456789|123456789012345|10000000000000000000000
$1,234.56|1.234.567,89 €|1,234,567|10 000 000|€ 030 123456|030 123456 €|+10%|3.141592653589793|0.123 456 789|1e+10
+48.856614|978-3-16-148410-0|550e8400-e29b-41d4-a716-446655440000|02139-4307|078-05-1120|000-00-0000|2204.02311
10.1000/182|4111 1111 1111 1111|x = a+12345678|#0412 345 678|0x1234-5678|0001|007|001 002 003|010 020 030
001 002 003 004|1 2 3 4 5 6 7 8 9 10|01 02 03|00 00 00 00 00|555-0123|100-200
"""
EMAILS = "a@b.co|first.last+tag@sub.example.org|müller@bücher.de|USER_1@EXAMPLE.COM|o%x@a-b.io"
NOT_EMAILS = "@decorator|user@host|icon@2x.png|git@github.com:x/y|numpy@1.2.3|a @ b.com|@a.com|a@b@c.com|x@y.|m@n.T"
FRAMES = ["%s", "Call %s.", "(%s)", "Tel: %s, please", "a\n%s\nb", "'%s'"]


def listed(table):
    return [entry for line in table.strip().splitlines() for entry in line.split("|")]


@pytest.mark.parametrize("phone", listed(PHONES))
def test_telephone_numbers(phone):
    for frame in [*FRAMES, "tel:%s"]:
        assert mask_contacts(frame % phone) == (frame % "<PHONE>", 0, 1)


@pytest.mark.parametrize("other", listed(OTHERS))
def test_numbers_of_other_kinds(other):
    for frame in FRAMES:
        text = frame % other
        assert mask_contacts(text) == (text, 0, 0)


@pytest.mark.parametrize("email", listed(EMAILS))
def test_addresses(email):
    for frame in [*FRAMES, "<%s>", "mailto:%s"]:
        assert mask_contacts(frame % email) == (frame % "<EMAIL>", 1, 0)


@pytest.mark.parametrize("other", listed(NOT_EMAILS))
def test_what_only_looks_like_an_address(other):
    assert mask_contacts(other) == (other, 0, 0)


def test_several():
    text = "Ada <ada@example.org>, +44 20 7946 0958 or 020 7946 0959; Bob: bob@example.org."
    assert mask_contacts(text) == ("Ada <<EMAIL>>, <PHONE> or <PHONE>; Bob: <EMAIL>.", 2, 2)
